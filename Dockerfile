# The image of onnx-serve: `docker run IMAGE serve`. docs/image.md tells how to build, run and change it.
#
#   VARIANT    cpu, gpu (onnxruntime-gpu 1.26 with CUDA 12: driver 525 or later) or gpu-cuda13 (driver 580 or later)
#   MODEL_DIR  a model folder inside the build context to put into /opt/ml/model; empty: none
#   ARTIFACT   a trained model's file inside the build context, converted into /opt/ml/model; empty: none.
#              CONVERT_OPTIONS are further words for `onnx-serve convert`, CONVERT_TORCH torch's requirement
#   BASE       Debian trixie, by whatever name the registry at hand has it
#
# No syntax line, here-documents or COPY --link: the builder of Docker 20.10 and a machine without a registry
# must do. The secrets pip_conf and ca_bundle are optional, for a private index or a proxy.
ARG BASE=debian:trixie-slim
ARG VARIANT=cpu
ARG MODEL_DIR=
ARG ARTIFACT=


FROM ${BASE} AS python
RUN apt-get update \
 && apt-get install --yes --no-install-recommends python3 \
 && rm -rf /var/lib/apt/lists/* /var/cache/ldconfig/* /var/cache/debconf/*-old /var/log/*


FROM python AS dependencies
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
RUN apt-get update \
 && apt-get install --yes --no-install-recommends locales python3-pip \
 && rm -rf /var/lib/apt/lists/*
# Text models fold case by the rules of this locale, and do not load without it. One folder of 3 MB.
RUN mkdir /locale && localedef --no-archive --inputfile=en_US --charmap=UTF-8 /locale/en_US.utf8
WORKDIR /build
ARG VARIANT
COPY requirements/${VARIANT}.txt requirements/build.txt requirements/
COPY docker/trim.py ./
# pip works on this environment from outside, so it is never in it.
RUN --mount=type=secret,id=pip_conf,target=/etc/pip.conf --mount=type=secret,id=ca_bundle \
    python3 -m venv --without-pip /opt/onnx-serve \
 && pip --python /opt/onnx-serve/bin/python install --no-compile --no-cache-dir --disable-pip-version-check \
        --no-deps --only-binary :all: --require-hashes --requirement "requirements/$VARIANT.txt" \
 && python3 trim.py /opt/onnx-serve/lib/python3.*/site-packages \
 && python3 -m compileall -q -j 0 --invalidation-mode unchecked-hash /opt/onnx-serve/lib


FROM dependencies AS package
RUN --mount=type=secret,id=pip_conf,target=/etc/pip.conf --mount=type=secret,id=ca_bundle \
    python3 -m venv --without-pip wheel \
 && pip --python wheel/bin/python install --no-cache-dir --disable-pip-version-check \
        --no-deps --only-binary :all: --require-hashes --requirement requirements/build.txt
COPY pyproject.toml config.yaml README.md LICENSE source/
COPY onnx_serve source/onnx_serve
COPY converters source/converters
# A root of its own: the project becomes a small layer above that of its dependencies. Bytecode is compiled
# with its checks off: nothing is written or compiled at run time, whatever happens to the files' times.
RUN pip --python wheel/bin/python wheel --no-cache-dir --no-deps --no-build-isolation --no-index \
        --disable-pip-version-check --wheel-dir dist ./source \
 && pip --python /opt/onnx-serve/bin/python install --no-cache-dir --no-compile --no-deps --no-index \
        --disable-pip-version-check --no-warn-script-location --root /project dist/*.whl \
 && chmod -R a+rX /project \
 && python3 -m compileall -q --invalidation-mode unchecked-hash -s /project -p / /project


# A VARIANT that does not exist ends the build at once: no stage has that name, and it can be no image's name.
FROM python AS variant-must-be-cpu-gpu-or-gpu-cuda13...not-cpu

FROM python AS variant-must-be-cpu-gpu-or-gpu-cuda13...not-gpu
# What the NVIDIA container runtime reads: https://docs.nvidia.com/datacenter/cloud-native/container-toolkit/latest/docker-specialized.html
ENV NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility

FROM variant-must-be-cpu-gpu-or-gpu-cuda13...not-gpu AS variant-must-be-cpu-gpu-or-gpu-cuda13...not-gpu-cuda13


FROM variant-must-be-cpu-gpu-or-gpu-cuda13...not-${VARIANT} AS server
COPY --from=dependencies /locale/ /usr/lib/locale/
COPY --from=dependencies /opt/onnx-serve/ /opt/onnx-serve/
COPY docker/healthcheck /usr/local/bin/
COPY --from=package /project/ /
# MALLOC_ARENA_MAX and ARROW_DEFAULT_MEMORY_POOL: docs/decisions/0003-allocator.md.
ENV PATH=/opt/onnx-serve/bin:$PATH \
    LANG=C.UTF-8 \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    ORT_DISABLE_TELEMETRY=1 \
    ARROW_DEFAULT_MEMORY_POOL=system \
    MALLOC_ARENA_MAX=1
# A container of an inference pipeline is told its port:
# https://docs.aws.amazon.com/sagemaker/latest/dg/inference-pipeline-real-time.html
LABEL org.opencontainers.image.title="onnx-serve" \
      org.opencontainers.image.description="Serve any ONNX model the way Amazon SageMaker expects a container to" \
      org.opencontainers.image.licenses="Apache-2.0" \
      com.amazonaws.sagemaker.capabilities.accept-bind-to-port=true \
      com.amazonaws.sagemaker.capabilities.multi-models=true
EXPOSE 8080
HEALTHCHECK --interval=10s --timeout=3s --start-period=60s --retries=3 CMD ["healthcheck"]
ENTRYPOINT ["onnx-serve"]


# The converters and their libraries: an environment that no image gets. BuildKit makes what the last stage asks
# for, so that without ARTIFACT nothing of this is downloaded.
FROM dependencies AS conversion-dependencies
COPY requirements/convert.txt requirements/
RUN --mount=type=secret,id=pip_conf,target=/etc/pip.conf --mount=type=secret,id=ca_bundle \
    python3 -m venv --without-pip /opt/convert \
 && pip --python /opt/convert/bin/python install --no-compile --no-cache-dir --disable-pip-version-check \
        --no-deps --only-binary :all: --require-hashes --requirement requirements/convert.txt
# torch is in no lock: its wheels differ from index to index. The version is for whoever builds to name.
ARG CONVERT_TORCH=
# hadolint ignore=DL3013
RUN --mount=type=secret,id=pip_conf,target=/etc/pip.conf --mount=type=secret,id=ca_bundle \
    if [ -n "$CONVERT_TORCH" ]; then \
        pip --python /opt/convert/bin/python install --no-compile --no-cache-dir --disable-pip-version-check \
            --only-binary :all: "$CONVERT_TORCH"; \
    fi


# The artifact and the files that its options name are read where they lie, in the build context.
FROM conversion-dependencies AS convert
COPY --from=package /build/dist/ dist/
RUN pip --python /opt/convert/bin/python install --no-cache-dir --no-compile --no-deps --no-index \
        --disable-pip-version-check dist/*.whl
ENV LANG=C.UTF-8 \
    PYTHONDONTWRITEBYTECODE=1 \
    ORT_DISABLE_TELEMETRY=1
ARG VARIANT
COPY requirements/${VARIANT}.txt /served.txt
ARG ARTIFACT
ARG CONVERT_OPTIONS=
WORKDIR /context
# A GPU variant serves with another release of onnxruntime than the converters', which decides what the model may use.
# Options are split as a shell splits them: a name with a space can be quoted.
RUN --mount=type=bind,target=/context \
    served=$(sed -n 's/^onnxruntime-gpu==\([0-9]*\.[0-9]*\).*/\1/p' /served.txt) && \
    eval "set -- ${served:+--target-onnxruntime $served} $CONVERT_OPTIONS" && \
    /opt/convert/bin/onnx-serve convert "./$ARTIFACT" --output /model "$@"


# The model is loaded and run once, so that a build with one that cannot be served fails.
FROM server AS given-model
ARG MODEL_DIR
COPY ${MODEL_DIR} /opt/ml/model/
RUN chmod -R a+rX /opt/ml/model && ONNX_SERVE_PROVIDERS=cpu onnx-serve inspect

# The same with the onnxruntime that will serve it, which in a GPU variant is not the converters'.
FROM server AS converted-model
COPY --from=convert /model/ /opt/ml/model/
RUN chmod -R a+rX /opt/ml/model && ONNX_SERVE_PROVIDERS=cpu onnx-serve inspect

# With both MODEL_DIR and ARTIFACT the last name is no stage's, and can be no image's.
FROM server AS give-model_dir-or-artifact-not-both...given

FROM server AS give-model_dir-or-artifact-not-both...given-model_dir
COPY --from=given-model /opt/ml/model/ /opt/ml/model/

FROM server AS give-model_dir-or-artifact-not-both...given-artifact
COPY --from=converted-model /opt/ml/model/ /opt/ml/model/

FROM give-model_dir-or-artifact-not-both...given${MODEL_DIR:+-model_dir}${ARTIFACT:+-artifact}

#!/bin/bash
# Runs a command with a Docker engine: with_engine.sh COMMAND [ARGUMENT...]
#
# An engine that answers is used as it is. Otherwise, as root on Debian, one is started for the command's time:
# Debian's docker.io, own socket and data, no bridge, no firewall rules, and a base image made with debootstrap,
# so that no container registry is needed. Everything but the installed packages and the cached base image is
# gone afterwards. Where neither is possible: one line on standard error that says why, and exit code 0.
#
# The command finds DOCKER, DOCKER_HOST, BASE and BUILD_FLAGS in its environment.
#   ENGINE_CACHE=dir   keeps the base image (default /var/cache/onnx-serve-image)
set -Eeuo pipefail

SUITE=trixie
CACHE=${ENGINE_CACHE:-/var/cache/onnx-serve-image}
BASE_DAYS=7
STOP_S=20

skip() {
    printf 'skipped: %s\n' "$*" >&2
    exit 0
}

say() {
    printf 'engine: %s\n' "$*" >&2
}

engine_answers() {
    local client=${DOCKER:-docker}
    command -v "$client" >/dev/null && timeout 10 "$client" version >/dev/null 2>&1
}

builds() {
    # Without BuildKit a client of version 23 or later cannot build this Dockerfile.
    DOCKER_BUILDKIT=1 timeout 10 "${DOCKER:-docker}" build --help 2>&1 | grep -q -- --secret
}

install_packages() {
    local packages=()
    [ -x /usr/sbin/dockerd ] && [ -x /usr/bin/docker ] || packages+=(docker.io)
    command -v debootstrap >/dev/null || packages+=(debootstrap)
    [ ${#packages[@]} -gt 0 ] || return 0
    say "installing ${packages[*]}"
    apt-get update -qq >"$WORK/apt.log" 2>&1 || skip "apt-get update failed: $(tail -1 "$WORK/apt.log")"
    # The package would start a daemon of its own.
    local policy=/usr/sbin/policy-rc.d made=
    if [ ! -e "$policy" ]; then
        printf '#!/bin/sh\nexit 101\n' >"$policy"
        chmod 755 "$policy"
        made=1
    fi
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${packages[@]}" \
        >>"$WORK/apt.log" 2>&1 || skip "cannot install ${packages[*]}: $(tail -1 "$WORK/apt.log")"
    [ -z "$made" ] || rm -f "$policy"
}

make_base() {
    # What the official slim image is: minbase without documentation, and an apt that keeps nothing.
    # https://github.com/debuerreotype/docker-debian-artifacts
    local root=$WORK/root mirror
    [ -s "$BASE_TAR" ] && [ -z "$(find "$BASE_TAR" -mtime "+$BASE_DAYS")" ] && return
    mirror=$(awk '/^URIs:/ {print $2; exit}
                  /^deb / {for (i = 2; i <= NF; i++) if ($i ~ /^http/) {print $i; exit}}' \
        /etc/apt/sources.list.d/debian.sources /etc/apt/sources.list 2>/dev/null || true)
    say "making the base image with debootstrap"
    mkdir -p "$CACHE"
    debootstrap --variant=minbase --keyring=/usr/share/keyrings/debian-archive-keyring.gpg \
        "$SUITE" "$root" "${mirror:-http://deb.debian.org/debian}" >"$WORK/debootstrap.log" 2>&1 ||
        skip "debootstrap failed: $(tail -1 "$WORK/debootstrap.log")"
    local clean='rm -f /var/cache/apt/archives/*.deb /var/cache/apt/archives/partial/*.deb /var/cache/apt/*.bin || true'
    printf '%s\n' "DPkg::Post-Invoke { \"$clean\"; };" "APT::Update::Post-Invoke { \"$clean\"; };" \
        'Dir::Cache::pkgcache "";' 'Dir::Cache::srcpkgcache "";' >"$root/etc/apt/apt.conf.d/docker-clean"
    printf 'force-unsafe-io\n' >"$root/etc/dpkg/dpkg.cfg.d/docker-apt-speedup"
    {
        printf 'path-exclude /usr/share/%s/*\n' doc info locale man
        printf 'path-include /usr/share/doc/*/copyright\n'
    } >"$root/etc/dpkg/dpkg.cfg.d/docker"
    rm -rf "$root"/var/cache/apt/* "$root"/var/lib/apt/lists/* "$root"/var/log/* \
        "$root"/usr/share/{man,doc,locale,info}/* "$root/etc/resolv.conf" "$root/etc/hostname"
    tar -C "$root" --one-file-system --numeric-owner -cf "$BASE_TAR.part" .
    mv "$BASE_TAR.part" "$BASE_TAR"
    rm -rf --one-file-system "$root"
}

start_engine() {
    printf '{}\n' >"$WORK/daemon.json" # instead of /etc/docker/daemon.json
    local driver
    for driver in overlay2 vfs; do
        setsid /usr/sbin/dockerd --config-file "$WORK/daemon.json" --host "unix://$WORK/docker.sock" \
            --data-root "$WORK/data" --exec-root "$WORK/exec" --pidfile "$WORK/docker.pid" \
            --iptables=false --ip6tables=false --bridge=none --storage-driver "$driver" \
            >"$WORK/dockerd.log" 2>&1 </dev/null &
        engine=$!
        for _ in $(seq 1 80); do
            "$DOCKER" version >/dev/null 2>&1 && return
            kill -0 "$engine" 2>/dev/null || break
            sleep 0.25
        done
        kill "$engine" 2>/dev/null || true
        wait "$engine" 2>/dev/null || true
        engine=
    done
    skip "dockerd does not start: $(grep -v level=info "$WORK/dockerd.log" | tail -1)"
}

stop_engine() {
    set +e
    trap - ERR
    if [ -n "$engine" ]; then
        "$DOCKER" ps --quiet --all 2>/dev/null | xargs -r "$DOCKER" rm --force >/dev/null 2>&1
        kill "$engine" 2>/dev/null
        for _ in $(seq 1 $((STOP_S * 4))); do
            kill -0 "$engine" 2>/dev/null || break
            sleep 0.25
        done
        kill -9 "$engine" 2>/dev/null
        wait "$engine" 2>/dev/null
    fi
    awk -v below="$WORK/" 'index($2, below) == 1 {print $2}' /proc/mounts | sort -r | xargs -r -n1 umount -l
    rm -rf --one-file-system "$WORK"
}

if engine_answers; then
    builds || skip "${DOCKER:-docker} has no BuildKit (install docker-buildx)"
    exec "$@"
fi
[ "$(id -u)" = 0 ] || skip "no Docker engine answers, and only root can start one"
command -v apt-get >/dev/null || skip "no Docker engine answers, and there is no apt-get to install one with"

WORK=$(mktemp -d "${TMPDIR:-/tmp}/onnx-serve-engine.XXXXXX")
chmod 755 "$WORK"
engine=
trap stop_engine EXIT
trap 'exit 130' INT TERM
# /usr/local may hold another client, without BuildKit.
export DOCKER=/usr/bin/docker DOCKER_HOST=unix://$WORK/docker.sock DOCKER_CONFIG=$WORK/client
export BASE=debian:$SUITE-slim
BASE_TAR=$CACHE/$SUITE-slim.tar
install_packages
make_base
start_engine
"$DOCKER" import --change 'CMD ["bash"]' "$BASE_TAR" "$BASE" >/dev/null
say "ready: $("$DOCKER" version --format '{{.Server.Version}}'), base $(($(stat -c %s "$BASE_TAR") >> 20)) MiB"

# Without a bridge the build uses the host's network; certificates that this machine trusts reach pip as a
# secret, which is in no layer.
BUILD_FLAGS="--network host"
certificates=${PIP_CERT:-${SSL_CERT_FILE:-}}
if [ -s "$certificates" ]; then
    printf '[global]\ncert = /run/secrets/ca_bundle\ntimeout = 180\n' >"$WORK/pip.conf"
    BUILD_FLAGS+=" --secret id=pip_conf,src=$WORK/pip.conf --secret id=ca_bundle,src=$certificates"
fi
export BUILD_FLAGS
"$@"

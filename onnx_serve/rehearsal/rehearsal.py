"""A rehearsal: Batch Transform's agent played against a container that keeps SageMaker's contract, ours or not.

The container is pinged until it is ready and asked for its parameters; files are split to records, packed into
requests, sent several at once, repeated when they fail, and put together, as
https://docs.aws.amazon.com/sagemaker/latest/dg/batch-transform.html and the pages that ``rehearsal_rules`` names
have it. What would have failed a job, or spoiled its output, is gathered as findings.

Requests and answers wait in memory: at most one request more than are under way, and answers of 256 MiB at most.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import BinaryIO, cast

from onnx_serve.batch.input_files import InputFile
from onnx_serve.batch.output_folder import OutputFolder
from onnx_serve.batch.request_plan import Plan
from onnx_serve.batch.transform_job import TransformJob
from onnx_serve.codecs.interface import Body
from onnx_serve.errors import PayloadTooLarge, RequestError, ServeError
from onnx_serve.rehearsal.http_exchange import Address, Client, Exchange
from onnx_serve.rehearsal.rehearsal_findings import Findings
from onnx_serve.rehearsal.rehearsal_output import Assembly, Totals
from onnx_serve.rehearsal.rehearsal_requests import Streamed, Work, cut_file, header_line
from onnx_serve.rehearsal.rehearsal_trials import Sample

__all__ = ["ANSWER_BYTES", "Job"]

ANSWER_BYTES = 256 << 20
_MIB = 1 << 20
_OK, _CLIENT_ERROR, _TOO_LARGE, _SERVER_ERROR = 200, 400, 413, 500
_EXIT_S = 1.0
_NOT_SENT = Exchange("dropped", "not sent")
_FAILURES = {
    "refused": "no answer",
    "dropped": "no answer",
    "timeout": "timeout",
    "garbage": "garbage",
    "too long": "answer too long",
}


class Job:
    """One transform job against a container. Runs once.

    Args:
        job: What its author chose.
        plan: How requests are made of it.
        address: Of the container.
        findings: Gets what is wrong.
        exit_code: How the container has ended, or None.
        output: Where outputs go; None to write none.

    Attributes:
        totals: What it has taken so far.
        sample: Records with their answers, for the trials afterwards; None if there were none fit for it.
        largest: The largest body that was answered, with its media type.
    """

    def __init__(
        self,
        job: TransformJob,
        plan: Plan,
        address: Address,
        findings: Findings,
        exit_code: Callable[[], int | None],
        output: OutputFolder | None = None,
    ) -> None:
        self.totals = Totals()
        self.sample: Sample | None = None
        self.largest: tuple[bytes, str] = (b"", "")
        self._job = job
        self._plan = plan
        self._address = address
        self._findings = findings
        self._exit_code = exit_code
        self._output = output
        self._local = threading.local()
        self._clients: list[Client] = []
        self._failed: set[str] = set()
        self._problems: dict[str, str] = {}
        self._stop = threading.Event()

    def run(self, files: Sequence[InputFile]) -> Totals:
        """Sends everything; what goes wrong is in the findings."""
        start = time.monotonic()
        pool = ThreadPoolExecutor(self._plan.concurrent, thread_name_prefix="onnx-serve-agent")
        ahead: deque[tuple[Work, Future[tuple[Exchange, int]] | None]] = deque()
        assembly: Assembly | None = None
        finished = False
        try:
            for work in self._works(files):
                is_end = work.batch is None and not work.streamed
                ahead.append((work, None if is_end else pool.submit(self._send, work)))
                if len(ahead) > self._plan.concurrent:
                    assembly = self._take(*ahead.popleft(), assembly)
            while ahead:
                assembly = self._take(*ahead.popleft(), assembly)
            finished = True
        finally:
            self._stop.set()
            if assembly is not None:
                assembly.discard()
            if not finished:
                for client in self._clients:
                    client.abort()
            pool.shutdown(wait=True, cancel_futures=True)
            for client in self._clients:
                client.close()
        self.totals.seconds = time.monotonic() - start
        return self.totals

    def _works(self, files: Sequence[InputFile]) -> Iterator[Work]:
        """The requests of all files in order, each file's followed by its end."""
        for file in files:
            work = Work(file, "")
            if self._stop.is_set():
                self._fail(work, None, f"not tried: {self.totals.stopped}")
            elif file.problem:
                self._fail(work, "input unreadable", file.problem)
            else:
                try:
                    work.media_type = file.content_type(self._job.content_type)
                    yield from self._requests(file, work.media_type)
                except PayloadTooLarge as ex:
                    self._fail(work, "record too large", str(ex))
                except (ServeError, OSError) as ex:
                    self._fail(work, "input unreadable", _words(ex))
            yield work

    def _requests(self, file: InputFile, media_type: str) -> Iterator[Work]:
        for work in cut_file(file, media_type, self._job, self._plan):
            if file.name in self._failed or self._stop.is_set():
                return
            if work.number == 1 and work.batch is not None and media_type.startswith("text/csv"):
                header = header_line(work.batch.data)
                if header:
                    self._findings.add("header line", f"{file.name}, line 1", header)
            yield work if work.batch is None else self._processed(work)

    def _processed(self, work: Work) -> Work:
        assert work.batch is not None
        whole = self._job.split_type == "none"
        try:
            work.body = self._job.processing.request(
                work.batch.data, work.media_type, whole=whole, first=work.batch.first
            )
        except RequestError as ex:
            self._fail(work, "processing", str(ex))
        return work

    def _send(self, work: Work) -> tuple[Exchange, int]:
        """Sends a request as often as the job allows; tells what came in the end, and of which attempt."""
        client: Client | None = getattr(self._local, "client", None)
        if client is None:
            client = self._local.client = Client(self._address, ANSWER_BYTES)
            self._clients.append(client)
        headers = {"Content-Type": work.media_type}
        if self._job.accept:
            headers["Accept"] = self._job.accept
        exchange, attempt = _NOT_SENT, 0
        for attempt in range(self._job.max_retries + 1):  # noqa: B007  used after the loop
            if work.file.name in self._failed or self._stop.is_set():
                break
            exchange = self._post(client, work, headers)
            lost = exchange.failure in {"refused", "dropped", "timeout", "garbage"}
            if not (lost or exchange.status >= _SERVER_ERROR) or self._exit_code() is not None:
                break
        return exchange, attempt

    def _post(self, client: Client, work: Work, headers: dict[str, str]) -> Exchange:
        if not work.streamed:
            return client.post("/invocations", work.body, headers, self._job.timeout_s)
        try:
            with work.file.open(self._job.compression, lambda _: None) as stream:
                body = Body(cast("BinaryIO", Streamed(stream)), -1)
                return client.post("/invocations", body, headers, self._job.timeout_s)
        except (ServeError, OSError) as ex:
            self._fail(work, "input unreadable", _words(ex))
            return _NOT_SENT

    def _take(
        self, work: Work, future: "Future[tuple[Exchange, int]] | None", assembly: "Assembly | None"
    ) -> "Assembly | None":
        """Looks at one answer, or ends a file."""
        if assembly is None:
            assembly = Assembly(work.file, self._job, self._output)
            self.totals.files.append(assembly.outcome)
        if future is None:
            self._end(work, assembly)
            return None
        exchange, attempt = future.result()
        if work.file.name in self._failed:
            return assembly
        if exchange is _NOT_SENT:
            self._fail(work, None, f"not tried: {self.totals.stopped}")
            return assembly
        where = f"{work.file.name}, request {work.number}"
        if exchange.failure or exchange.status != _OK:
            self._refused(work, where, exchange)
            return assembly
        if attempt:
            self._findings.add("retried", where, f"answered at attempt {attempt + 1}")
        self.totals.latencies_s.append(exchange.seconds)
        self._accept(work, where, exchange, assembly)
        return assembly

    def _end(self, work: Work, assembly: "Assembly") -> None:
        name = work.file.name
        if name in self._failed:
            assembly.discard()
            assembly.outcome.problem = self._problems.get(name, "")
            return
        try:
            assembly.commit()
        except OSError as ex:
            assembly.outcome.problem = f"cannot write the output: {ex.strerror or ex}"

    def _accept(self, work: Work, where: str, exchange: Exchange, assembly: "Assembly") -> None:
        """Checks a good answer and adds it to the output."""
        records = work.batch.records if work.batch is not None else 0
        if self._job.split_type == "none":
            records = 1
        for name, detail, severity in assembly.checks.check(exchange.content_type, exchange.body, records):
            self._findings.add(name, where, detail, severity)
        answer = exchange.body
        if work.batch is not None:
            try:
                answer = self._job.processing.answer(
                    work.batch.data, answer, self._job.accept or exchange.content_type,
                    whole=self._job.split_type == "none", first=work.batch.first,
                )  # fmt: skip
            except RequestError as ex:
                self._fail(work, "processing", str(ex), where)
                return
            self._keep(work, exchange)
        outcome = assembly.outcome
        outcome.requests += 1
        outcome.records += records
        outcome.bytes_in += len(work.body) or work.file.size
        try:
            assembly.append(answer)
        except OSError as ex:
            self._fail(work, None, f"cannot write the output: {ex.strerror or ex}")

    def _keep(self, work: Work, exchange: Exchange) -> None:
        """Remembers what the trials need."""
        if len(work.body) > len(self.largest[0]):
            self.largest = (work.body, work.media_type)
        if self.sample is None and self._job.split_type == "line":
            self.sample = Sample.of(work.body, exchange.body, work.media_type, self._job.accept)

    def _refused(self, work: Work, where: str, exchange: Exchange) -> None:
        """Notes why a request failed, and stops the job if the container is gone."""
        gone = exchange.failure in {"refused", "dropped", "timeout"} and not self._is_alive()
        code = self._exit_code()
        # A process closes its connections a moment before it can be seen to have ended.
        patience = time.monotonic() + _EXIT_S
        while gone and code is None and time.monotonic() < patience:
            time.sleep(0.01)
            code = self._exit_code()
        if code is not None:
            self._stop_job(f"the container ended with exit code {code}")
            self._fail(work, "exited", f"exit code {code}", where)
            return
        if exchange.failure:
            self._fail(work, _FAILURES[exchange.failure], exchange.detail, where)
            if gone:
                self._stop_job("the container answers neither requests nor pings")
            return
        message = " ".join(exchange.body[:2000].decode("utf-8", "replace").split())
        printable = "".join(c for c in message if c.isprintable())[:250]
        if exchange.status == _TOO_LARGE:
            name = "payload refused"
            printable = f"{len(work.body)} bytes; {printable}"
        elif exchange.status >= _SERVER_ERROR:
            name = "server error"
        elif exchange.status >= _CLIENT_ERROR:
            name = "client error"
        else:
            name = "unexpected status"
        self._fail(work, name, f"status {exchange.status}: {printable}", where)

    def _is_alive(self) -> bool:
        client = Client(self._address, _MIB)
        try:
            return client.get("/ping", 2.0).status == _OK
        finally:
            client.close()

    def _stop_job(self, reason: str) -> None:
        self.totals.stopped = self.totals.stopped or reason
        self._stop.set()

    def _fail(self, work: Work, name: str | None, detail: str, where: str = "") -> None:
        self._failed.add(work.file.name)
        self._problems.setdefault(work.file.name, detail if name is None else f"{name}: {detail}")
        if name is not None:
            self._findings.add(name, where or work.file.name, detail)


def _words(ex: Exception) -> str:
    return (ex.strerror if isinstance(ex, OSError) else None) or str(ex)

"""What Batch Transform demands of a container: one rule a finding, each with its source.

``basis`` says how the rule is known: *documented* by AWS, *observed* in public logs or in AWS's own code, or
*assumed*, because nothing public says. Sources are pages below https://docs.aws.amazon.com/sagemaker/latest/ or
issues below https://github.com/; ``docs/rehearsal.md`` shows the same table.
"""

from dataclasses import dataclass
from typing import Literal

__all__ = ["RULES", "Basis", "Rule", "Severity"]

# fails: the job would have failed. corrupts: it would have ended well, with output that is wrong. warns: neither.
Severity = Literal["fails", "corrupts", "warns"]
Basis = Literal["documented", "observed", "assumed"]

_CONTAINER = "dg/your-algorithms-inference-code.html"
_BATCH = "dg/your-algorithms-batch-code.html"
_ERRORS = "dg/batch-transform-errors.html"
_TRANSFORM = "dg/batch-transform.html"
_PROCESSING = "dg/batch-transform-data-processing.html"
_CREATE = "APIReference/API_CreateTransformJob.html"
_CLIENT = "APIReference/API_ModelClientConfig.html"
_OUTPUT = "APIReference/API_TransformOutput.html"
_EXAMPLES = "aws/amazon-sagemaker-examples"


@dataclass(frozen=True, slots=True)
class Rule:
    """One demand.

    Attributes:
        severity: What breaking it does to a job.
        basis: How the demand is known.
        source: Where it stands.
        why: The demand and what follows from breaking it.
        fix: What to do.
    """

    severity: Severity
    basis: Basis
    source: str
    why: str
    fix: str

    @property
    def url(self) -> str:
        """Where the source can be read; the source itself where that is no page."""
        if self.source.endswith(".html"):
            return f"https://docs.aws.amazon.com/sagemaker/latest/{self.source}"
        repository, issue, number = self.source.partition("#")
        return f"https://github.com/{repository}/issues/{number}" if issue else self.source


RULES: dict[str, Rule] = {
    "never ready": Rule(
        "fails", "observed", f"{_EXAMPLES}#815",
        "GET /ping must answer 200; the agent asks about once a second and gives up after 30 minutes",
        "answer 200 once the model is loaded, and exit with a code other than 0 when it cannot be",
    ),
    "exited": Rule(
        "fails", "observed", "aws/sagemaker-python-sdk#1951",
        'the container ended while it was needed: requests fail with "Unable to get response from algorithm"',
        "read the end of the container's log below; the usual causes are memory and an exception at start",
    ),
    "ping slow": Rule(
        "warns", "documented", _CONTAINER,
        "GET /ping must answer within 2 seconds; while loading, a late answer counts as none",
        "keep a thread free for /ping, so that it never waits behind inferences",
    ),
    "ping not 200": Rule(
        "warns", "documented", _CONTAINER,
        "a container that has been ready must go on answering GET /ping with 200",
        "do not tie /ping to a queue or to free workers",
    ),
    "ping body": Rule(
        "warns", "documented", _CONTAINER,
        "GET /ping is to answer 200 with an empty body; the status alone has been seen to decide "
        "(aws/deep-learning-containers#2917)",
        "answer with an empty body, and never 200 to say that something is wrong",
    ),
    "connection slow": Rule(
        "warns", "documented", _CONTAINER,
        "a container must accept a connection within 250 ms",
        "raise the server's backlog, and accept connections in a thread that does nothing else",
    ),
    "parameters invalid": Rule(
        "warns", "documented", _BATCH,
        "GET /execution-parameters, where it is answered with 200, is a JSON object of MaxConcurrentTransforms and "
        "MaxPayloadInMB (whole numbers) and BatchStrategy; the rehearsal went on with the defaults for what is wrong",
        "answer the three keys, or 404",
    ),
    "parameters out of bounds": Rule(
        "warns", "documented", _CREATE,
        "MaxPayloadInMB is at most 100, and so is its product with MaxConcurrentTransforms; that it holds for the "
        "container's answer too is assumed, and the rehearsal went on with fewer requests at once",
        "answer numbers whose product is at most 100",
    ),
    "parameters spelling": Rule(
        "warns", "documented", _BATCH,
        "BatchStrategy is spelled MULTI_RECORD or SINGLE_RECORD in the container's answer; whether another spelling "
        "is understood is not documented",
        "answer MULTI_RECORD or SINGLE_RECORD",
    ),
    "parameters slow": Rule(
        "warns", "assumed", _BATCH,
        "no time limit is documented for GET /execution-parameters; it is taken to be that of /ping, 2 seconds",
        "answer from memory",
    ),
    "input unreadable": Rule(
        "fails", "documented", _ERRORS,
        "an input that cannot be read, decompressed or split has no output, and the job fails",
        "mend or leave out the file",
    ),
    "record too large": Rule(
        "fails", "documented", _ERRORS,
        "a record, or without SplitType a whole file, that exceeds MaxPayloadInMB fails the job",
        "raise MaxPayloadInMB (at most 100), or split the file",
    ),
    "header line": Rule(
        "warns", "documented", _TRANSFORM,
        "a transform job has no header option: the first line of a CSV file is sent as its first record, once",
        "remove the header line from the files",
    ),
    "payload refused": Rule(
        "fails", "observed", "aws/sagemaker-python-sdk#1882",
        "413: the container refuses a body that MaxPayloadInMB allows; the job fails with ClientError: 413",
        "raise the container's own limit (nginx: client_max_body_size; MAX_CONTENT_LENGTH), or lower MaxPayloadInMB",
    ),
    "client error": Rule(
        "fails", "observed", f"{_EXAMPLES}#898",
        "a status of 4xx fails the file and with it the job; that such a request is not repeated is assumed",
        "mend the records that the container's message names, or answer a placeholder in the place of a bad record",
    ),
    "server error": Rule(
        "fails", "observed", f"{_EXAMPLES}#3948",
        "a status of 5xx, InvocationsMaxRetries times repeated, fails the file and with it the job",
        "read the end of the container's log",
    ),
    "unexpected status": Rule(
        "fails", "documented", _CONTAINER,
        "POST /invocations must answer 200; 1xx, other 2xx and redirections are no success",
        "answer 200, with an empty body if there is nothing to say",
    ),
    "no answer": Rule(
        "fails", "observed", "aws/sagemaker-python-sdk#1951",
        'the connection was refused or cut, the retries too: "Unable to get response from algorithm"',
        "look for a worker killed for memory; give each request less: a smaller MaxPayloadInMB, fewer at once",
    ),
    "timeout": Rule(
        "fails", "documented", _CLIENT,
        "a request must be answered within InvocationsTimeoutInSeconds (default 600, at most 3600)",
        "lower MaxPayloadInMB, so that fewer records share a request, or raise InvocationsTimeoutInSeconds",
    ),
    "garbage": Rule(
        "fails", "documented", _CONTAINER,
        "answers must be HTTP/1.1",
        "find out what listens on the port",
    ),
    "answer too long": Rule(
        "fails", "assumed", "onnx-serve's own bound",
        "no limit of an answer is documented; the rehearsal does not read one of more than 256 MiB",
        "lower MaxPayloadInMB",
    ),
    "retried": Rule(
        "warns", "documented", _CLIENT,
        "a request succeeded only when it was repeated; that 5xx, timeouts and lost connections are what is "
        "repeated, at once, is assumed",
        "find out why the first attempt failed: with other timing the retries may not be enough",
    ),
    "type missing": Rule(
        "warns", "documented", _CONTAINER,
        "the answer has no Content-Type",
        "send the bare media type of what was written",
    ),
    "type with parameters": Rule(
        "warns", "observed", f"{_EXAMPLES}#3235",
        "the answer's Content-Type has parameters: containers behind this one in a pipeline, and the SDK's "
        "deserializers, compare it to the letter",
        "send the bare media type, without charset",
    ),
    "type not accepted": Rule(
        "warns", "documented", _PROCESSING,
        "the answer's Content-Type is not what Accept asked for; a join takes the answer for what Accept says",
        "honour Accept, or answer 406",
    ),
    "record count": Rule(
        "corrupts", "documented", _PROCESSING,
        "each record of a request must have one record in the answer, a line each: otherwise output and input "
        "cannot be matched",
        "answer one line a record, with a placeholder for what cannot be answered",
    ),
    "blank lines": Rule(
        "corrupts", "assumed", _PROCESSING,
        "a blank line in the answer is a record without content, or none at all to a reader that skips it",
        "write no empty lines",
    ),
    "no final newline": Rule(
        "corrupts", "documented", _OUTPUT,
        "answers are put together as they are unless AssembleWith is Line: the last record of one answer and the "
        "first of the next become one line",
        "end every answer with a newline, or set AssembleWith to Line",
    ),
    "second newline": Rule(
        "warns", "observed", "aws/sagemaker-python-sdk, local/entities.py",
        "AssembleWith Line adds a newline to every answer in the SDK's local mode, also to one that ends with a "
        "newline; what the platform does then is not documented",
        "leave AssembleWith out, or end the answers without a newline (onnx-serve: text_trailing_newline: false)",
    ),
    "ragged rows": Rule(
        "corrupts", "documented", _PROCESSING,
        "rows of the answer have different numbers of columns: an output filter such as $[0,-1] takes others in "
        "each row, and the agent's CSV reader may refuse them",
        "answer as many columns in every row, also for a bad record",
    ),
    "csv syntax": Rule(
        "warns", "observed", f"{_EXAMPLES}#1620",
        'the answer is not CSV as RFC 4180 has it; jobs with a filter or a join fail with "Failed to parse output '
        'from the algorithm as CSV"',
        "put cells that hold a comma or a quote in quotes, and double the quotes in them",
    ),
    "json syntax": Rule(
        "warns", "documented", _PROCESSING,
        "the answer is not JSON: a value each line, or one document for a request that is not split (NaN and "
        "Infinity are no JSON); a filter or a join fails",
        "write strict JSON, one value a line where the input is split by lines",
    ),
    "processing": Rule(
        "fails", "documented", _PROCESSING,
        "a filter or the join does not fit the records, or the answer has not one record for each",
        "compare the paths with a record and its answer; answer one record for each",
    ),
    "order": Rule(
        "corrupts", "documented", _PROCESSING,
        "records sent together came back in another order than each has alone: they are matched by their places",
        "answer in the order of the request",
    ),
    "company": Rule(
        "warns", "assumed", _TRANSFORM,
        "a record sent alone has another answer than in company: results depend on how records are packed",
        "look for dynamic quantisation, statistics over the batch or padding; or use BatchStrategy SingleRecord",
    ),
    "ignores SIGTERM": Rule(
        "warns", "documented", _CONTAINER,
        "the container did not end within 30 seconds of SIGTERM and was killed",
        "use the exec form of ENTRYPOINT and handle SIGTERM in that process",
    ),
}  # fmt: skip

"""The stored engine vs the reference → accuracy per output, the task metric, and the first wrong run.

Runs the shapes of every profile as served, then the evaluation data.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from dataclasses import replace

from engineworks.engines.backends import backend
from engineworks.engines.backends.base import Serving, Session
from engineworks.engines.engine_session import load_engine
from engineworks.engines.sidecar import Sidecar
from engineworks.errors import RunError
from engineworks.host.lazy import Array
from engineworks.measure.accuracy import Misshapen, OutputComparison
from engineworks.measure.accuracy_report import Accuracy
from engineworks.measure.served_report import Served
from engineworks.recipe.batch import output_axes
from engineworks.recipe.samples import SampleFile, samples_from_json
from engineworks.steps.job import StepJob
from engineworks.steps.reference import read_reference
from engineworks.steps.served import ServedComparison
from engineworks.steps.served_reference import ServedReference
from engineworks.steps.served_rows import ServedRows
from engineworks.steps.task_metric import TaskComparison


def run(job: StepJob) -> None:
    columns = {"labels": job.params["labels"], "slices": job.params.get("slices")}  # which only this step reads
    samples = samples_from_json(job.paths("evaluation"), job.params["samples"] | columns)
    session = _load(job)
    served: Served | None = None
    try:
        served = _compare_served(job, samples, session) if "shapes" in job.params else None
        if served and any(visit.raised for visit in served.sequence):
            session.close()  # a session that failed once is no evidence on the evaluation data
            session = _load(job)
        report = _compare_evaluation(job, samples, session)
    except RunError as error:
        if served and served.failures:  # some failures break the device for all later runs
            raise RunError(f"{served.failures[0]}; after that: {error.message}", hint=error.hint) from None
        raise
    finally:
        session.close()
    job.write(replace(report, served=served))


def _load(job: StepJob) -> Session:
    serving = Serving.from_json(job.params["serving"])
    target = job.params["target"]
    options = {**target["options"], **backend(target["backend"]).TRAITS.quiet_options}
    return load_engine(job.inputs["build"], {**target, "options": options}, serving=serving)


def _compare_served(job: StepJob, samples: SampleFile, session: Session) -> Served:
    plan = job.params["shapes"]
    with closing(ServedReference(job.inputs["reference"], job.inputs["lowered"])) as reference:
        rows = ServedRows(samples, plan["ranges"])
        device = bool(job.params["target"]["compute_capability"])
        precision = Sidecar.read(job.inputs["build"]).precision
        return ServedComparison(reference, rows, precision, device=device).follow(session, job.echo)


def _compare_evaluation(job: StepJob, samples: SampleFile, session: Session) -> Accuracy:
    axes = output_axes(samples.specs, session.outputs)
    comparisons = {spec.name: OutputComparison(axes[spec.name]) for spec in session.outputs}
    dtypes: dict[str, tuple[str, str]] = {}
    task = TaskComparison(job, samples, axes)
    feeds = samples.batches(job.params["batches"])
    misshapen: dict[str, Misshapen] = {}
    for run, (given, wanted) in enumerate(zip(feeds, read_reference(job.inputs["reference"]), strict=True), 1):
        got = session.run(given)
        _compare(comparisons, got, wanted, run, misshapen)
        dtypes |= _other_dtypes(got, wanted)
        task.add(given, got, wanted)
    outputs = {name: replace(c.result(), dtypes=dtypes.get(name)) for name, c in comparisons.items()}
    for name, mismatch in misshapen.items():  # metrics over the other runs would hide it
        outputs[name] = replace(outputs[name], misshapen=replace(mismatch, of=run), cosine=None, sqnr_db=None)
    return Accuracy(outputs, task.result(), samples.count, tuple(job.params["batches"]))


def _other_dtypes(got: Mapping[str, Array], wanted: Mapping[str, Array]) -> dict[str, tuple[str, str]]:
    """Return the outputs whose dtype differs from the reference's: the engine's and the reference's dtype."""
    both = {name: (got[name].dtype.name, wanted[name].dtype.name) for name in got.keys() & wanted.keys()}
    return {name: pair for name, pair in both.items() if pair[0] != pair[1]}


def _compare(
    comparisons: Mapping[str, OutputComparison], got: Mapping[str, Array], wanted: Mapping[str, Array], run: int,
    misshapen: dict[str, Misshapen],
) -> None:  # fmt: skip
    """Compare one run's outputs.

    got, wanted: by name, of equal shapes; their dtypes may differ. misshapen: the first run at which an output has
    another shape, why, and how many such runs there are.
    """
    for name, comparison in comparisons.items():
        if name not in got or name not in wanted:
            raise RunError(f"output '{name}' cannot be compared: {'the engine' if name in wanted else 'fp32'} lacks it")
        try:
            comparison.add(got[name], wanted[name])
        except ValueError as error:
            first = misshapen.get(name, Misshapen(run, str(error), 0, run))
            misshapen[name] = replace(first, runs=first.runs + 1)

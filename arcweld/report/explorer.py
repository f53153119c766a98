"""An engine's launches as a graph for Google's Model Explorer, and their times as its node data.

The forms are those of its ``graph_builder.py`` (a graph collection) and ``node_data_builder.py`` (node data by graph
and node); its page opens both as JSON files.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from arcweld.compiler.logs import printable
from arcweld.driver.estimate import LaunchEstimate
from arcweld.report.layers import made_as
from arcweld.report.timeline import Timeline
from arcweld.runtime.program import Launch, Program, Tensor
from arcweld.runtime.steps import Call, Choose, Read, Repeat, Run, Step, View, given_to_block, sizes_given

GRADIENT = ({"stop": 0.0, "bgColor": "#ffffff"}, {"stop": 1.0, "bgColor": "#e8590c"})  # from the least to the most time


def collection(timeline: Timeline, program: Program, label: str) -> dict[str, Any]:
    """The graph collection: one graph whose nodes are inputs, launches and steps of the host in their order, outputs.

    A loop is two steps, where it begins and where it ends.
    """
    given = sizes_given(program.steps).items()
    graph = _Graph(timeline, program, {**{n: s.hi for n, s in given if s.hi is not None}, **timeline.estimate.sizes})
    for t in program.inputs:
        graph.add(f"input {printable(t.name)}", t.name, "inputs", {"type": _type(t.dtype, t.shape)}, makes=[t.name])
    if program.steps:
        graph.add_steps(program.steps)
    else:
        graph.add_stage(0)
    for t in program.outputs:
        graph.add(f"output {printable(t.name)}", t.name, "outputs", {"type": _type(t.dtype, t.shape)}, [t.name])
    about = {"times": timeline.times, "card": printable(timeline.estimate.card.title)}
    about |= {f"size of {printable(n)}": str(v) for n, v in timeline.estimate.sizes.items()}
    made = {"id": _graph_id(program), "nodes": graph.nodes, "groupNodeAttributes": {"": about}}
    return {"label": printable(label), "graphs": [made]}


def node_data(timeline: Timeline, program: Program) -> dict[str, Any]:
    """The microseconds of each launch as node data of the graph of ``collection``."""
    results = {node_id(s.launch): {"value": s.us} for s in timeline.slices if s.launch is not None}
    kind = "measured us" if timeline.count else "modelled us"
    return {_graph_id(program): {"name": kind, "results": results, "gradient": list(GRADIENT)}}


def node_id(x: LaunchEstimate) -> str:
    """The identifier of a launch's node."""
    return f"{x.stage}: {printable(x.name)}"


def _graph_id(program: Program) -> str:
    return printable(program.name) or "engine"


def _type(dtype: str, shape: Sequence[str]) -> str:
    return printable(f"{dtype}[{', '.join(shape)}]")


@dataclass(slots=True)
class _Graph:
    """The nodes that are made so far.

    makers  which node made a tensor, by the tensor's name
    done    the numbers of the stages that have nodes
    """

    timeline: Timeline
    program: Program
    sizes: Mapping[str, int]
    nodes: list[dict[str, Any]] = field(default_factory=list)
    makers: dict[str, str] = field(default_factory=dict)
    done: set[int] = field(default_factory=set)

    def add(
        self, identifier: str, label: str, namespace: str, attributes: Mapping[str, str], reads: Sequence[str] = (),
        makes: Sequence[str] = (),
    ) -> None:  # fmt: skip
        """Adds a node that reads and makes tensors; there is no edge for those that no node has made, as weights."""
        edges = [
            {"sourceNodeId": self.makers[n], "sourceNodeOutputId": printable(n), "targetNodeInputId": str(place)}
            for place, n in enumerate(reads) if n in self.makers
        ]  # fmt: skip
        self.makers |= dict.fromkeys(makes, identifier)
        self.nodes.append({
            "id": identifier, "label": printable(label), "namespace": namespace,
            "attrs": [{"key": k, "value": v} for k, v in attributes.items() if v], "incomingEdges": edges,
        })  # fmt: skip

    def add_steps(self, steps: Sequence[Step]) -> None:
        """Adds what the host does, and the launches of the stages that it runs."""
        for step in steps:
            match step:
                case Run() if step.stage not in self.done:
                    self.add_stage(step.stage)
                case Read():
                    self._add_step("read", step, [step.tensor, *step.whole], step.outputs)
                case View():
                    self._add_step("view", step, [step.tensor], [step.output])
                case Call():
                    self._add_step(step.op, step, step.inputs, step.outputs)
                case Choose():
                    self.add_steps(step.then.steps)
                    self.add_steps(step.otherwise.steps)
                    read = [step.condition, *step.then.results, *step.otherwise.results]
                    self._add_step("choose", step, read, step.outputs)
                case Repeat():
                    begun = [step.trips, step.condition, *step.inputs]
                    self._add_step("loop begins", step, begun, given_to_block(step))
                    self.add_steps(step.body.steps)
                    self._add_step("loop ends", step, step.body.results, step.outputs)

    def _add_step(
        self, label: str, step: Read | View | Call | Choose | Repeat, reads: Sequence[str], makes: Sequence[Tensor]
    ) -> None:
        name = f"host: {len(self.nodes)}"
        attributes = {"nodes": ", ".join(map(printable, step.origin)), "where": "on the host"}
        self.add(name, label, "host", attributes, reads, [t.name for t in makes])

    def add_stage(self, number: int) -> None:
        """Adds the launches of a stage, which begins with the tensors that earlier ones have made."""
        self.done.add(number)
        stages = self.program.stages if self.program.steps else (self.program,)
        stage, several = stages[number].at(self.sizes), len(stages) > 1
        known = {x.name: x for x in self.timeline.estimate.launches if x.stage == number}
        roots = {a.name: a.of for a in stage.aliases}
        types = {t.name: _type(t.dtype, t.shape) for t in (*stage.inputs, *stage.temps, *stage.outputs)}
        for x in stage.launches:
            e = known[x.name]
            self.add(
                node_id(e), e.kernel, _namespace(x.origin, number, several), _attributes(e, x, self.timeline),
                [made_as(n, roots, self.makers) for n in dict.fromkeys(x.reads)],
            )  # fmt: skip
            written = list(dict.fromkeys(x.writes))
            self.makers |= {n: node_id(e) for n in written}
            self.nodes[-1]["outputsMetadata"] = [
                {
                    "id": printable(n), "attrs": [
                        {"key": "__tensor_tag", "value": printable(n)}, {"key": "type", "value": types.get(n, "")},
                    ],
                }
                for n in written
            ]  # fmt: skip
        for t in stage.outputs:  # one that is an alias was made by what made its bytes
            found = self.makers.get(made_as(t.name, roots, self.makers))
            if found is not None:
                self.makers[t.name] = found


def _namespace(origin: Sequence[str], stage: int, several: bool) -> str:
    """The folders in the first node's name, below the stage's where there are several."""
    folders = [f for f in (origin[0] if origin else "").split("/")[:-1] if f]
    return "/".join(map(printable, ([f"stage {stage}"] if several else []) + folders))


def _attributes(e: LaunchEstimate, x: Launch, timeline: Timeline) -> dict[str, str]:
    own = timeline.by_name.get(printable(e.name))
    m = e.modelled
    return {
        "nodes": ", ".join(map(printable, x.origin)), "template": printable(e.template),
        "modelled us": f"{m.us:.4g}", "measured us": f"{own.us:.4g}" if own is not None and timeline.count else "",
        "bound by": m.bound, "share of roofline": f"{m.share:.3f}", "bytes": f"{e.nbytes:.0f}",
        "FLOPs": f"{e.flops:.0f}", "grid": "x".join(map(str, e.grid)), "block": "x".join(map(str, e.block)),
        "shared bytes": str(e.shared_bytes), "types": ", ".join(e.types), "multiplies": e.multiplies,
    }  # fmt: skip

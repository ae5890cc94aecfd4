"""The variables of one line on the OPC UA server, and the handshake between them.

Whatever is not known is a reject: the variables say so from the first moment, again from each Start on, and after the
deadline, whether or not anything behind them still answers.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable, Coroutine, Mapping
from concurrent.futures import Executor
from functools import partial
from typing import TYPE_CHECKING, Any

from makel.errors import MakelError

if TYPE_CHECKING:
    from asyncua.server.server import Server

    from makel.station.decisions import Recorded
    from makel.station.trigger import Trigger

logger = logging.getLogger(__name__)

GRACE_S = 0.2
"""Seconds after a trigger's deadline until the variables say reject without waiting for the record any longer."""

VARIABLES: Mapping[str, tuple[str, Any]] = {
    # name: (OPC UA type, value before anything happened)
    "State": ("String", "Error"),
    "Ready": ("Boolean", False),
    "Busy": ("Boolean", False),
    "ResultValid": ("Boolean", False),
    "Heartbeat": ("UInt32", 0),
    "Sequence": ("UInt32", 0),
    "Reject": ("Boolean", True),
    "Verdict": ("String", "reject"),
    "Reason": ("String", "no part was inspected yet"),
    "Number": ("Int64", 0),
    "Part": ("String", ""),
    "FailedZones": ("String", ""),
    "Score": ("Double", math.nan),
    "Threshold": ("Double", math.nan),
    "PValue": ("Double", math.nan),
    "ModelId": ("String", ""),
    "At": ("String", ""),
    "LatencyMs": ("Double", math.nan),
    "Start": ("Boolean", False),
    "PartId": ("String", ""),
}
_WRITABLE = ("Start", "PartId")
_RESULT = ("Reject", "Verdict", "Number", "FailedZones", "Score", "Threshold", "PValue", "ModelId", "At", "LatencyMs")


class OpcuaLine:
    """One model's variables. Everything here runs in the server's event loop."""

    def __init__(
        self, model: str, trigger: Trigger | None, obstacles: Callable[[], list[str]], threads: Executor
    ) -> None:
        """Not on a server yet; `add` does that.

        Args:
            model: The name the model is served under.
            trigger: What pairs parts with pictures; None where every picture that arrives is decided.
            obstacles: Why nothing can be decided now.
            threads: What waits for decisions.
        """
        self.model = model
        self.triggered = trigger is not None
        self._trigger, self._obstacles, self._threads = trigger, obstacles, threads
        self._taken, self._busy, self._sequence = False, False, 0
        self._nodes: dict[str, Any] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def add(self, server: Server, index: int) -> None:
        """Put the variables on a server, in the namespace of this index."""
        from asyncua import ua
        from asyncua.common.methods import uamethod

        @uamethod
        async def start(_parent: Any, part: str) -> tuple[bool, str]:
            refusal = await self.begin(part)
            return not refusal, refusal

        def node_id(name: str) -> ua.NodeId:
            return ua.NodeId.from_string(f"ns={index};s={name}")

        parent = await server.nodes.objects.add_object(node_id(self.model), f"{index}:{self.model}")
        for name, (kind, value) in VARIABLES.items():
            node = await parent.add_variable(
                node_id(f"{self.model}.{name}"), f"{index}:{name}", value, getattr(ua.VariantType, kind)
            )
            self._nodes[name] = node
            if name in _WRITABLE:
                await node.set_writable()
        await parent.add_method(
            node_id(f"{self.model}.StartPart"),
            f"{index}:StartPart",
            start,
            [ua.VariantType.String],
            [ua.VariantType.Boolean, ua.VariantType.String],
        )
        subscription = await server.create_subscription(10, _Written(self._start_written))
        await subscription.subscribe_data_change(self._nodes["Start"])
        await self.show_state()

    async def finish(self) -> None:
        """Wait for the part at hand."""
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _start_written(self, value: bool) -> None:
        """A controller set Start: the same as the method, with the name of the part from PartId. It falls back."""
        if value:
            refusal = await self.begin(str(await self._nodes["PartId"].read_value()))
            if refusal:
                logger.warning("OPC UA: Start of %s: %s", self.model, refusal)
            await self._write(Start=False)

    async def begin(self, part: str) -> str:
        """Start a part, and wait until its picture may come; gives why not."""
        if self._trigger is None:
            return f"{self.model} decides every picture that arrives and takes no Start"
        if self._taken:
            return "the part before is not decided yet"
        self._taken = True
        armed = asyncio.Event()
        self.keep(self._decide(self._trigger, part, armed))
        await armed.wait()
        return ""

    async def _decide(self, trigger: Trigger, part: str, armed: asyncio.Event) -> None:
        await self.show_state()
        await self._show_reject(part, "not decided yet")
        loop = asyncio.get_running_loop()

        def tell() -> None:
            loop.call_soon_threadsafe(armed.set)

        taking = loop.run_in_executor(self._threads, partial(trigger.take, part=part, source="opcua", armed=tell))
        taking.add_done_callback(lambda _: armed.set())
        self.keep(self._show_busy(armed))
        try:
            outcome = await asyncio.wait_for(asyncio.shield(taking), trigger.deadline_s + GRACE_S)
            await self.show(outcome.recorded)
        except TimeoutError:
            armed.set()
            await self._show_reject(part, f"no decision within {1000 * trigger.deadline_s:g} ms")
            await self._finish()
            await asyncio.wait([taking])  # only then can the next part start
        except Exception as error:
            if not isinstance(error, MakelError):
                logger.exception("OPC UA: deciding %s failed", self.model)
            await self._show_reject(part, str(error))
            await self._finish()
        finally:
            self._taken = self._busy = False
            await self.show_state()

    async def _show_busy(self, armed: asyncio.Event) -> None:
        """Busy says more than "not Ready": from now on the part's picture may come."""
        await armed.wait()
        self._busy = self._taken
        await self.show_state()

    def keep(self, work: Coroutine[Any, Any, None]) -> None:
        """Run something beside everything else; `finish` waits for it."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def show(self, recorded: Recorded) -> None:
        """Show a decision as the result."""
        decision = recorded.decision
        await self._write(ResultValid=False)
        await self._write(
            Reject=decision.verdict != "pass",
            Verdict=decision.verdict,
            Reason=decision.reason,
            Number=recorded.number,
            Part=decision.name,
            FailedZones=", ".join(zone.name for zone in decision.failed_zones),
            Score=_number(decision.score),
            Threshold=_number(decision.threshold),
            PValue=_number(decision.p_value),
            ModelId=decision.model_id,
            At=decision.at,
            LatencyMs=decision.latency_ms,
        )
        await self._finish()

    async def _show_reject(self, part: str, reason: str) -> None:
        await self._write(ResultValid=False)
        before = {name: value for name, (_, value) in VARIABLES.items() if name in _RESULT}
        await self._write(**before | {"Part": part, "Reason": reason})

    async def _finish(self) -> None:
        """The result stands: Sequence and ResultValid come last, so that whoever sees them sees all of it."""
        self._sequence = (self._sequence + 1) % 2**32
        await self._write(Sequence=self._sequence)
        await self._write(ResultValid=True)

    async def show_state(self) -> None:
        """Say whether the line is ready, busy or in trouble."""
        problem = (self._trigger.problem if self._trigger else "") or "; ".join(self._obstacles())
        waiting = "Ready" if self._trigger else "ContinuousExecution"
        state = "SingleExecution" if self._taken else "Error" if problem else waiting
        await self._write(State=state, Ready=state == "Ready", Busy=self._busy)

    async def beat(self, beats: int) -> None:
        """Move the heartbeat on, and say how the line is."""
        await self.show_state()
        await self._write(Heartbeat=beats)

    async def _write(self, **values: Any) -> None:
        from asyncua import ua

        for name, value in values.items():
            await self._nodes[name].write_value(ua.Variant(value, getattr(ua.VariantType, VARIABLES[name][0])))


class _Written:
    """Passes on what a client writes to a variable."""

    def __init__(self, written: Callable[[Any], Any]) -> None:
        self._written = written

    async def datachange_notification(self, _node: Any, value: Any, _data: Any) -> None:
        await self._written(value)


def _number(value: float | None) -> float:
    return math.nan if value is None else value

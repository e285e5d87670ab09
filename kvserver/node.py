"""The composition root: builds the rooms, starts them in order, watches them, stops them."""

import asyncio
import os
import random
import secrets
from collections.abc import Callable, Coroutine
from typing import Final

from kvpb.raft_pb2 import PeerMessage, PublishMember
from kvserver import __version__
from kvserver.api.door import Door
from kvserver.api.server import ApiServer
from kvserver.clock import Clock
from kvserver.config import QUOTA_BYTES_ADVISED_MAX, Config, parse_address
from kvserver.errors import DiskError, ExitCode, LostDiskError, NodeError
from kvserver.mvcc.history import Change
from kvserver.mvcc.leases import LeaseChange
from kvserver.opening import Opened, open_node
from kvserver.pipeline.alarm_keeper import AlarmKeeper
from kvserver.pipeline.applier import Applier
from kvserver.pipeline.autocompact import auto_compact, keeper_of
from kvserver.pipeline.comparison import Comparison
from kvserver.pipeline.crossing import Crossing
from kvserver.pipeline.features import FEATURE_LEVEL
from kvserver.pipeline.herald import Herald
from kvserver.pipeline.lessor import Lessor, ttl_s_min
from kvserver.pipeline.limits import Limits
from kvserver.pipeline.operator import Operator
from kvserver.pipeline.outcome import Result
from kvserver.pipeline.proposer import Proposer
from kvserver.pipeline.reader import Reader
from kvserver.pipeline.role import REMOVED, Role, RoleMachine
from kvserver.pipeline.roster import Roster
from kvserver.pipeline.space import Space
from kvserver.pipeline.verifier import Verified, Verifier, damage_behind
from kvserver.pipeline.watchdog import MainStep, MainWatch, RaftWatch
from kvserver.pipeline.watching import WatchHub
from kvserver.raft.driver import RaftThread
from kvserver.raft.engine import RaftEngine
from kvserver.raft.entry import MemberId
from kvserver.raft.identity import forget_birth
from kvserver.raft.journal import LogBounds
from kvserver.raft.ports import timings_of
from kvserver.raft.seam import check_library
from kvserver.raft.status import EngineParts, RaftStatus
from kvserver.raft.transport import Links, PeerTransport
from kvserver.storage.contract import Storage
from kvserver.storage.copies import LmdbCopies
from kvserver.telemetry import Event, drain_log, log_stacks
from kvserver.tuning import prefer_throughput

BEAT_S: Final = 0.05
STUCK_EXIT_S: Final = 10.0
"""A thread without progress for so long ends the process: one slow sync or a pause does not, nor
does an entry that takes long to apply: every node would begin it again and again."""

HAND_OVER_S: Final = 1.5
LINGER_S: Final = 0.25
"""How long a former active still tells clients who the new one is: a call that meets a server in
the middle of its stop is cancelled with no word about its outcome."""

STOP_GRACE_S: Final = 0.5


class Node:
    """One server process from start to stop."""

    def __init__(self, config: Config, clock: Clock, event: Event) -> None:
        self._config = config
        self._clock = clock
        self._event = event
        self._limits = Limits(request_timeout_s=config.request_timeout_ms / 1000)
        self._stop = asyncio.Event()
        self._told_to_stop = asyncio.Event()
        self._failure: BaseException | None = None
        self._timings = timings_of(config)
        self._main_watch = MainWatch(
            clock.monotonic(), hand_over_after_s=self._timings.check_quorum,
            withhold_after_s=self._timings.election_timeout_max,
        )  # fmt: skip
        self._raft_watch = RaftWatch(clock.monotonic(), self._timings.election_timeout_max)
        self._beats = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._copies: LmdbCopies | None = None

    async def run(self) -> ExitCode:
        """Serve until told to stop.

        Raises:
            NodeError: it can't start, or can't go on.
        """
        prefer_throughput()
        check_library()
        self._opened = opened = await open_node(self._config, self._stop, self._event)
        try:
            return await self._serve(opened)
        except Exception as error:
            known = isinstance(error, NodeError) and not isinstance(error, DiskError)
            if not known and not self._verifier.verified:
                await damage_behind(error, opened.storage.folder, self._told_to_stop)
            raise
        finally:
            opened.data_dir.close()  # not before: nobody else may write what is looked into here

    async def _serve(self, opened: Opened) -> ExitCode:
        if opened.verified:
            opened.data_dir.note_verified()
        try:
            self._build(opened)
            await self._start()
        except BaseException:
            self._close()
            raise
        self._event(
            "node.ready", client=self._config.listen_client, peer=self._config.listen_peer,
            member=f"{self._engine.me:x}", version=__version__,
        )  # fmt: skip
        self._beating = self._spawn(self._beat())
        watching = self._spawn(self._watch())
        tasks = [self._spawn(each) for each in (self._compact(), self._keep_alarms())]
        comparing = self._comparison.run(self._config.corrupt_check_interval_s, self._stop)
        verifying = self._verifier.run(self._config.scrub_interval_s, self._stop)
        reading = [self._spawn(each) for each in (verifying, comparing)]
        await self._stop.wait()
        for task in tasks:
            task.cancel()
        await asyncio.wait(reading)  # they end with their slices; the storage is still open
        watching.cancel()  # not before: without it what they have proposed might wait for ever
        await self._shut_down()
        if self._failure is not None:
            raise self._failure
        return ExitCode.OK

    def stop(self) -> None:
        """Stop cleanly. From the main thread."""
        self._told_to_stop.set()
        self._stop.set()

    async def _start(self) -> None:
        """Listen to clients, then take part in the agreement: whoever is elected can be reached."""
        await self._api.start(
            parse_address("--listen-client", self._config.listen_client), self._config.http_address
        )
        try:
            self._thread.start()
        except BaseException:
            await self._api.stop(0)
            raise

    # ------------------------------------------------------------------ building

    def _build(self, opened: Opened) -> None:
        """From inside to outside; a name that is built later is reached through `self`."""
        storage, clock, config = opened.storage, self._clock, self._config
        self._loop = asyncio.get_running_loop()
        self._me = MemberId(opened.identity.member_id)
        self._attributes = PublishMember(
            id=self._me, client_urls=[f"http://{config.client_address}"], version=__version__,
            feature_level=FEATURE_LEVEL,
        )  # fmt: skip
        self._verifier = Verifier(
            storage, clock, verified=opened.verified, urgent=lambda: self._role.awaits_verification,
            on_sound=self._on_sound,
            on_damage=lambda error: self._spawn(self._on_damage(error)), on_event=self._event,
        )  # fmt: skip
        self._build_pipeline(storage)
        self._copies = LmdbCopies(
            opened.data_dir, storage, clock, self._event, self._fail_soon(self._loop)
        )
        self._transport = transport = self._build_transport()
        self._engine = RaftEngine(
            EngineParts(
                storage=storage,
                copies=self._copies,
                identity=opened.identity,
                plan=opened.plan,
                timings=self._timings,
                clock=clock,
                rng=random.Random(secrets.randbits(64)),  # noqa: S311 - for timeouts
                wire=transport,
                machine=self._applier,
                proposals=self._proposer,
                on_applied=self._crossing.results,
                on_turn=self._crossing.end_turn,
                on_members=self._roster.set_members,
                on_event=self._event,
                on_aside=self._heard_aside,
                verified=opened.verified,
                on_replaced=self._on_replaced,
                bounds=LogBounds(
                    keep_entries=config.log_keep_entries, hold_entries=5 * config.log_keep_entries
                ),
            )
        )
        self._thread = RaftThread(
            self._engine, transport, clock, before_turn=self._before_turn,
            on_failure=self._fail_soon(self._loop),
        )  # fmt: skip
        self._api = ApiServer(self._build_door(opened), self._event)

    def _build_pipeline(self, storage: Storage) -> None:
        """What requests pass on their way to the log and back."""
        clock = self._clock
        self._roster = Roster()
        self._applier = applier = Applier(storage, self._roster, on_applied=self._on_applied)
        self._reader = Reader(self._limits, clock, knock=lambda: self._thread.call(lambda: None))
        self._space = Space(
            storage, clock, self._config.quota, applier.alarms, self._reader.linearizable
        )
        self._proposer = Proposer(
            self._limits,
            clock,
            knock=lambda: self._thread.call(lambda: None),
            log_time_ms=lambda: applier.log_time_ms,
            feature_level=lambda: applier.feature_level,
            room=self._space,
        )
        applier.awaited = self._proposer.awaits
        self._herald = Herald(
            self._roster, self._proposer, feature_level=lambda: applier.feature_level,
            spawn=self._spawn, on_event=self._event)  # fmt: skip
        self._role = RoleMachine(self._me, self._limits, clock, self._on_role)
        self._keeper = AlarmKeeper(
            self._me, applier.alarms, self._space, role=self._role, roster=self._roster,
            proposer=self._proposer, on_word=self._say_full, on_event=self._event,
        )  # fmt: skip
        self._comparison = Comparison(
            self._me, storage, clock, alarms=applier.alarms, role=self._role, roster=self._roster,
            proposer=self._proposer, status=lambda: self._crossing.status,
            moments=applier.moments, say=self._say_aside, on_event=self._event,
            on_damage=lambda error: self._spawn(self._on_damage(error)),
        )  # fmt: skip
        self._watches = WatchHub(storage, lambda: self._crossing.applied_index_visible, self._fail)
        self._lessor = self._build_lessor(storage)
        self._crossing = Crossing(
            self._loop, self._proposer, self._on_status, self._watches.publish,
            self._lessor.publish, self._fail,
        )  # fmt: skip

    def _build_lessor(self, storage: Storage) -> Lessor:
        rng = random.Random(secrets.randbits(64))  # noqa: S311 - for ids
        election_timeout_s = self._timings.election_timeout_max
        return Lessor(
            storage, self._clock, rng,
            ttl_s_min=lambda: ttl_s_min(len(self._roster.members), election_timeout_s),
            propose=self._proposer.propose, linearizable=self._reader.linearizable,
            log_time_ms=self._proposer.log_time_ms,
            on_failure=self._fail, stamped_ms=lambda: self._applier.log_time_ms,
        )  # fmt: skip

    def _build_door(self, opened: Opened) -> Door:
        assert self._copies is not None
        return Door(
            me=self._me,
            cluster_id=opened.identity.cluster_id,
            role=self._role,
            proposer=self._proposer,
            reader=self._reader,
            operator=Operator(
                self._me,
                self._limits,
                self._role,
                self._roster,
                post=lambda change: self._thread.call(lambda: self._engine.change_members(change)),
                hand_over=lambda target, tell: self._thread.call(
                    lambda: tell(self._engine.hand_over(target))
                ),
            ),
            roster=self._roster,
            storage=opened.storage,
            crossing=self._crossing,
            raft_status=lambda: self._crossing.status or self._engine.status(),
            watches=self._watches,
            lessor=self._lessor,
            clock=self._clock,
            newest_revision=lambda: self._applier.revision,
            feature_level=lambda: self._applier.feature_level,
            on_failure=self._fail,
            compacted_to=lambda: self._applier.compacted_to,
            make_backup=self._copies.backup,
            alarms=self._applier.alarms,
            quota_bytes=self._config.quota,
            defragment=lambda done: self._thread.call(lambda: self._engine.defragment(done)),
            match_index=self._engine.match_index,
            verified_part=lambda: self._verifier.verified_part,
            raft_silent_s=lambda: self._raft_watch.silent_s,
            watch_progress_s=self._config.watch_progress_interval_ms / 1000,
        )

    def _build_transport(self) -> PeerTransport:
        return PeerTransport(
            Links(
                me=self._me,
                listen=parse_address("--listen-peer", self._config.listen_peer),
                dead_peer_s=self._timings.dead_peer,
                clock=self._clock,
                hello=lambda: self._engine.hello(self._attributes),
                refuse_reason=lambda hello: self._engine.refuse_reason(hello),
                answer_joining=lambda hello: self._engine.answer_joining(hello),
                on_lost_disk=self._on_lost_disk,
                on_removed=self._on_removed,
                post=lambda event: self._engine.post(event),
                wake=lambda: self._thread.wake(),
                on_event=self._event,
            )
        )

    def _on_lost_disk(self, reason: str) -> None:
        """The cluster knows an older directory of this member; from the raft thread."""
        if not self._engine.established:  # else this one has voted, and stays as it is
            self._fail_soon(self._loop)(LostDiskError(reason))

    def _on_replaced(self, generation: int) -> None:
        """A copy has taken the place of the state; from the raft thread."""
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._verifier.replaced, generation)

    def _on_removed(self, removed: bool) -> None:
        """The members say whether this node is one of them; from the raft thread."""
        if removed:
            self._event("node.removed", reason=REMOVED)
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._role.set_removed, removed)

    def _on_applied(
        self, index: int, term: int, results: list[Result], changes: list[Change],
        leases: list[LeaseChange],
    ) -> None:  # fmt: skip
        """A batch was applied; from the raft thread."""
        self._proposer.applied(index, term, results)
        self._crossing.applied(changes, leases)

    def _say_aside(self, member: MemberId, message: PeerMessage) -> None:
        self._thread.call(lambda: self._engine.say(member, message))

    def _heard_aside(self, member: MemberId, message: PeerMessage) -> None:
        """A peer says what is not about the log; from the raft thread."""
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._comparison.heard, member, message)

    def _before_turn(self) -> None:
        """In the raft thread: take over the reads, look whether the main thread still serves."""
        reads = self._reader.take()
        if reads:
            self._engine.post_reads(reads)
        match self._main_watch.look(self._clock.monotonic(), self._beats):
            case MainStep.HAND_OVER:
                self._event("node.stuck", thread="main", step="hand over")
                self._engine.hand_over()
            case MainStep.WITHHOLD:
                self._engine.withhold_heartbeats()
            case MainStep.NONE:
                pass
        if self._main_watch.silent_s > STUCK_EXIT_S:
            self._die("main")

    # ------------------------------------------------------------------ main thread

    async def _beat(self) -> None:
        """Show the raft thread that this one goes on, as long as there is a raft thread."""
        while True:
            await asyncio.sleep(BEAT_S)
            self._beats += 1

    async def _watch(self) -> None:
        """Give up on what waits too long, and look whether the raft thread makes turns."""
        while True:
            await asyncio.sleep(BEAT_S)
            self._proposer.expire()
            self._reader.expire()
            watch, pace = self._raft_watch, self._applier.pace
            watch.look(self._clock.monotonic(), turns=self._thread.turns, steps=pace.steps)
            if watch.silent_s > STUCK_EXIT_S:
                self._die("raft")
            self._role.obstruct(watch.obstacle)

    def _on_sound(self, generation: int, found: Verified) -> None:
        """The whole of the state was read, and nothing is wrong with it."""
        self._opened.data_dir.note_verified()

        def tell() -> None:
            self._opened.storage.learn_digests(found.folder, found.transaction, found.digests)
            self._engine.set_verified(generation)

        self._thread.call(tell)

    async def _on_damage(self, error: NodeError) -> None:
        """Nothing is answered from this state any more; somebody else takes over, then it ends."""
        self._role.retire("its data is damaged")
        if self._role.leads and len(self._roster.members) > 1:
            await self._hand_over()
            await asyncio.sleep(LINGER_S)
        self._fail(error)

    async def _keep_alarms(self) -> None:
        """Look at the room on the disk, and at what that asks of the cluster."""
        if self._config.quota > QUOTA_BYTES_ADVISED_MAX:
            self._event(
                "config.advice", option="--quota-bytes", value=self._config.quota,
                reason="above 8 GiB copies for other members and backups take long",
            )  # fmt: skip
        await self._keeper.run(lambda: self._crossing.status)

    async def _compact(self) -> None:
        """Forget old revisions while this node is the active."""
        if (keeper := keeper_of(self._config.retention)) is not None:
            await auto_compact(
                keeper, self._clock, self._role, self._proposer,
                revision=lambda: self._applier.revision, on_event=self._event,
            )  # fmt: skip

    def _on_status(self, status: RaftStatus) -> None:
        self._role.observe(status)
        if status.active:
            self._herald.tell([self._attributes, *status.peers.values()])
        self._show_health()

    def _say_full(self, full: bool) -> None:
        """Tell the peers whether there is room here; the active raises or takes back the alarm."""
        fresh = PublishMember()
        fresh.CopyFrom(self._attributes)
        fresh.out_of_space = full
        self._attributes = fresh
        self._thread.call(self._transport.say_hello)

    def _on_role(self, role: Role, term: int, reason: str) -> None:
        self._event("role.changed", role=role.value, term=term, reason=reason)
        if role is Role.ACTIVE:
            self._watches.activate(self._applier.revision)
            self._lessor.activate(term)
        else:
            self._watches.close()
            self._lessor.close()
        self._show_health()

    def _show_health(self) -> None:
        status = self._crossing.status
        fit = status is not None and status.fit
        self._spawn(self._api.show_health(self._role.role, fit=fit))

    def _spawn(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._fail(error)

    def _fail_soon(self, loop: asyncio.AbstractEventLoop) -> Callable[[BaseException], object]:
        return lambda error: loop.call_soon_threadsafe(self._fail, error)

    def _fail(self, error: BaseException) -> None:
        """This node can't go on."""
        self._failure = self._failure or error
        self._stop.set()

    def _die(self, thread: str) -> None:
        """End the process now: a stuck thread can't be stopped."""
        self._event("node.stuck", thread=thread, step="exit")
        log_stacks()
        drain_log()
        os._exit(ExitCode.STUCK)

    # ------------------------------------------------------------------ stopping

    async def _shut_down(self) -> None:
        """Hand over if there is somebody to hand over to, then stop from outside to inside."""
        served = self._role.active
        if self._failure is None and served:
            await self._hand_over()
        self._role.retire("stopping")
        if self._failure is None and served and len(self._roster.members) > 1:
            await asyncio.sleep(LINGER_S)
        await self._api.stop(0 if self._failure else STOP_GRACE_S)
        # the thread first: LMDB does not forgive who still uses a storage that is closed
        if not await self._loop.run_in_executor(None, self._thread.stop, STUCK_EXIT_S):
            self._die("raft")
        self._beating.cancel()  # not before: a stop that takes a while is no stuck thread
        if isinstance(self._failure, LostDiskError):
            forget_birth(self._opened.storage)
        self._close()
        self._event("node.stopped")

    async def _hand_over(self) -> None:
        self._thread.call(self._engine.hand_over)
        deadline = self._clock.monotonic() + HAND_OVER_S
        while self._role.leads and len(self._roster.members) > 1:
            if self._clock.monotonic() > deadline:
                self._event("transfer.failed", reason="no standby took over in time")
                return
            await asyncio.sleep(0.005)

    def _close(self) -> None:
        if self._copies is not None:
            self._copies.close()
        self._opened.storage.close()

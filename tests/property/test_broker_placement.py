"""The index of workers with room against an examination of every worker."""

from hypothesis import given
from hypothesis import strategies as st

from imagegen_broker.core.records import Client, Request, Worker
from imagegen_broker.scheduling.scheduler import Scheduler
from imagegen_broker.scheduling.strategies.queue_depth import QueueDepth
from imagegen_broker.scheduling.strategies.round_robin import RoundRobin
from imagegen_protocol.messages import Ready, Submit

MODELS = st.lists(st.sampled_from("mno"), max_size=3, unique=True)
CLIENT = Client(id=b"c", session=1, last_received=0.0)


def worker(index, models, warm, depth, last_used):
    ready = Ready(
        worker_id=bytes(16), name=str(index), host="h", gpu_id=0, device="cpu", backend="b",
        models=models or ["m"], capacity=3, max_batch_size=1,
    )  # fmt: skip
    foreign = {bytes([number]) for number in range(depth)}
    return Worker(id=bytes([index]), ready=ready, session=1, last_received=0.0, warm=frozenset(warm),
                  foreign=foreign, last_used=last_used)  # fmt: skip


fleets = st.lists(
    st.tuples(MODELS, MODELS, st.integers(0, 3), st.integers(0, 3)), max_size=6
).map(lambda fleet: [worker(index, *about) for index, about in enumerate(fleet)])  # fmt: skip


def scheduler_of(fleet, strategy):
    """A scheduler with these workers, and one waiting request for each model."""
    scheduler = Scheduler(strategy.name)
    for number, model in enumerate("mno"):
        submit = Submit(request_id=bytes([number]) * 16)
        scheduler.queue.push(Request(submit, CLIENT, model, payload=(), arrived_at=0.0))
    for one in fleet:
        scheduler.add_worker(one)
    return scheduler


def choose(scheduler, model):
    return scheduler.strategy.choose(scheduler.queue.peek(model), 1, 0.0)


@given(fleets, st.sampled_from([RoundRobin, QueueDepth]), st.data())
def test_the_chosen_worker_is_a_warm_one_with_room_or_else_a_cold_one_in_the_strategys_order(
    fleet, strategy, data
):
    scheduler = scheduler_of(fleet, strategy)
    for turn in range(12):
        model = data.draw(st.sampled_from("mno"))
        chosen = choose(scheduler, model)
        able = [one for one in fleet if one.room and model in one.ready.models]
        if chosen is None:
            assert not able
            continue

        def order(one, model=model):
            return (not one.is_warm(model), *strategy.key(None, one))

        assert order(chosen) == min(map(order, able))
        assert chosen in able
        chosen.foreign.add(b"given %d" % turn)
        chosen.last_used = 10 + turn
        scheduler.worker_changed(chosen)
        if data.draw(st.booleans()):
            changed = data.draw(st.sampled_from(fleet))
            changed.warm = frozenset(data.draw(MODELS))
            changed.foreign.clear()
            scheduler.worker_changed(changed)


@given(fleets)
def test_no_request_waits_while_any_worker_has_room_cold_or_warm(fleet):
    scheduler = scheduler_of(fleet, RoundRobin)
    room = sum(one.room for one in fleet if "m" in one.ready.models)
    for turn in range(room):
        chosen = choose(scheduler, "m")
        assert chosen is not None
        chosen.foreign.add(b"given %d" % turn)
        scheduler.worker_changed(chosen)
    assert choose(scheduler, "m") is None

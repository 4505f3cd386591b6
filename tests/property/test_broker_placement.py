"""The index of workers against a look at every one of them."""

from hypothesis import given
from hypothesis import strategies as st

from imagegen_broker.core.placement import Placement
from imagegen_broker.core.records import Worker
from imagegen_broker.core.strategies import KEYS, Load
from imagegen_protocol.messages import Ready

MODELS = st.lists(st.sampled_from("mno"), max_size=3, unique=True)


def worker(index, models, warm, depth, last_used):
    ready = Ready(
        worker_id=bytes(16), name=str(index), host="h", gpu_id=0, device="cpu", backend="b",
        models=models or ["m"], capacity=3, max_batch_size=1,
    )  # fmt: skip
    others = {bytes([number]) for number in range(depth)}
    return Worker(id=bytes([index]), ready=ready, session=1, heard=0.0, warm=frozenset(warm), others=others,
                  last_used=last_used)  # fmt: skip


fleets = st.lists(
    st.tuples(MODELS, MODELS, st.integers(0, 3), st.integers(0, 3)), max_size=6
).map(lambda fleet: [worker(index, *about) for index, about in enumerate(fleet)])  # fmt: skip


@given(fleets, st.sampled_from(["round-robin", "queue-depth"]), st.data())
def test_the_next_worker_is_a_warm_one_with_room_or_else_a_cold_one_in_the_strategys_order(fleet, strategy, data):
    placement = Placement(strategy)
    for one in fleet:
        placement.add(one)
    for turn in range(12):
        model = data.draw(st.sampled_from("mno"))
        chosen = placement.choose(model)
        able = [one for one in fleet if one.room and model in one.ready.models]
        if chosen is None:
            assert not able
            continue

        def order(one, model=model):
            return (not one.is_warm(model), KEYS[strategy](Load(one.depth, one.last_used, 1.0)))

        assert order(chosen) == min(map(order, able))
        assert chosen in able
        chosen.others.add(b"given %d" % turn)
        chosen.last_used = 10 + turn
        placement.update(chosen)
        if data.draw(st.booleans()):
            changed = data.draw(st.sampled_from(fleet))
            changed.warm = frozenset(data.draw(MODELS))
            changed.others.clear()
            placement.update(changed)


@given(fleets)
def test_no_request_waits_while_any_worker_has_room_cold_or_warm(fleet):
    placement = Placement("round-robin")
    for one in fleet:
        placement.add(one)
    room = sum(one.room for one in fleet if "m" in one.ready.models)
    for turn in range(room):
        chosen = placement.choose("m")
        assert chosen is not None
        chosen.others.add(b"given %d" % turn)
        placement.update(chosen)
    assert placement.choose("m") is None

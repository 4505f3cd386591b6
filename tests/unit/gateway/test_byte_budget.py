"""Limits on the bytes that requests hold."""

from imagegen_gateway.core.byte_budget import ByteBudget


def test_a_key_can_not_exceed_its_maximum_and_all_keys_not_the_total():
    budget = ByteBudget(per_key=10, total=15)
    assert budget.take("a", 10) is None
    assert budget.take("a", 1) == "key"
    assert budget.take("b", 6) == "total"
    assert budget.take("b", 5) is None
    assert (budget["a"], budget["b"], budget.held) == (10, 5, 15)
    budget.give_back("a", 4)
    assert budget.take("a", 4) is None
    assert budget.take("b", 1) == "total"


def test_only_keys_that_hold_bytes_are_stored():
    budget = ByteBudget(per_key=10, total=10)
    for number in range(1000):
        assert budget.take(str(number), 10) is None
        assert budget.take(str(number), 1) == "key"
        budget.give_back(str(number), 10)
    assert (budget.held, len(budget._by_key)) == (0, 0)

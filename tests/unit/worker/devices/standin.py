"""A stand-in for the module `pynvml`, with fake cards."""

from dataclasses import dataclass, field
from types import SimpleNamespace

A, B = "GPU-aaaa1111-0000", "GPU-bbbb2222-0000"
MIG = ("MIG-cccc0001-0000", "MIG-cccc0002-0000")


class NVMLError(Exception):
    """Stands for `pynvml.NVMLError`, the base of all NVML errors."""


@dataclass
class Card:
    """One card or MIG instance; a field that is None is not supported."""

    uuid: str
    name: str = "NVIDIA Test Card"
    parts: dict[int, "Card"] | None = None
    lost: bool = False
    memory: tuple[int, int] | None = (2_000, 80_000)
    utilization: int | None = 37
    temperature: int | None = 61
    power: int | None = 312_500
    clocks: dict[int, int] = field(default_factory=lambda: {1: 1980, 2: 2619})
    reasons: int | None = 0x24


class StandIn:
    """Has the functions of `pynvml`; counts initialisations and readings."""

    NVMLError = NVMLError
    NVML_DEVICE_MIG_ENABLE = 1
    NVML_CLOCK_SM, NVML_CLOCK_MEM, NVML_TEMPERATURE_GPU = 1, 2, 0

    def __init__(self, *cards, driver=True):
        self.cards = list(cards)
        self.driver = driver
        self.open = 0
        self.reads = 0

    def nvmlInit(self):
        if not self.driver:
            raise NVMLError("NVML Shared Library Not Found")
        self.open += 1

    def nvmlShutdown(self):
        self.open -= 1

    def nvmlDeviceGetCount(self):
        assert self.open
        return len(self.cards)

    def nvmlDeviceGetHandleByIndex(self, index):
        return self._available(self.cards[index])

    def nvmlDeviceGetHandleByUUID(self, uuid):
        assert self.open
        self.reads += 1
        for card in self.cards:
            for one in (card, *(card.parts or {}).values()):
                if one.uuid == uuid:
                    return self._available(one)
        raise NVMLError("Not Found")

    def nvmlDeviceGetUUID(self, card):
        return card.uuid

    def nvmlDeviceGetName(self, card):
        return card.name

    def nvmlDeviceGetMigMode(self, card):
        if card.parts is None:
            raise NVMLError("Not Supported")
        return [int(bool(card.parts)), 0]

    def nvmlDeviceGetMaxMigDeviceCount(self, card):
        return 7

    def nvmlDeviceGetMigDeviceHandleByIndex(self, card, place):
        if place not in card.parts:
            raise NVMLError("Not Found")
        return card.parts[place]

    def nvmlDeviceGetMemoryInfo(self, card):
        used, total = self._value_of(card.memory)
        return SimpleNamespace(used=used, total=total)

    def nvmlDeviceGetUtilizationRates(self, card):
        return SimpleNamespace(gpu=self._value_of(card.utilization), memory=1)

    def nvmlDeviceGetTemperature(self, card, sensor):
        return self._value_of(card.temperature)

    def nvmlDeviceGetPowerUsage(self, card):
        return self._value_of(card.power)

    def nvmlDeviceGetClockInfo(self, card, kind):
        return self._value_of(card.clocks.get(kind))

    def nvmlDeviceGetCurrentClocksThrottleReasons(self, card):
        return self._value_of(card.reasons)

    @staticmethod
    def _value_of(value):
        if value is None:
            raise NVMLError("Not Supported")
        return value

    @staticmethod
    def _available(card):
        if card.lost:
            raise NVMLError("GPU is lost")
        return card


def split_card(*places):
    """Return a card in MIG mode with instances at these indexes."""
    parts = {place: Card(uuid, "NVIDIA Test Card MIG 1g.10gb") for place, uuid in zip(places, MIG, strict=False)}
    return Card("GPU-cccc3333-0000", parts=parts)

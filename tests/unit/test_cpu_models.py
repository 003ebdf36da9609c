"""`-cpu`: what models and features the core knows, and what it says of those it cannot give."""

import pytest

from qemupy.errors import ConfigError
from qemupy.vcpu.interp import InterpAccel, cpu_features, cpu_models


@pytest.fixture
def accel() -> InterpAccel:
    return InterpAccel(1 << 20)


def test_the_models_of_the_field_are_there() -> None:
    names = [name for name, _ in cpu_models()]
    wanted = ["486", "pentium", "pentium3", "qemu32", "qemu64", "Nehalem", "Haswell", "Skylake-Client", "max", "host"]
    assert set(wanted) <= set(names)
    assert {"pni", "sse4.2", "avx2", "la57"} <= set(cpu_features())


def test_every_model_can_be_made(accel: InterpAccel) -> None:
    for name, _ in cpu_models():
        assert accel.create_vcpu(name).missing_features() == [], name


def test_a_feature_nobody_can_have_is_named(accel: InterpAccel) -> None:
    vcpu = accel.create_vcpu("qemu64,+monitor,+vmx")
    assert vcpu.missing_features() == ["CPUID.01H:ECX.monitor [bit 3]", "CPUID.01H:ECX.vmx [bit 5]"]


@pytest.mark.parametrize(("spec", "message"), [
    ("no-such-cpu", "unable to find CPU model 'no-such-cpu'"),
    ("max,+no-such", "Property 'max-x86_64-cpu.no-such' not found"),
    ("max,avx=maybe", "Parameter 'avx' expects 'on' or 'off', not 'maybe'"),
    ("max,+monitor,enforce", "no guest here can have the requested feature: CPUID.01H:ECX.monitor [bit 3]"),
])  # fmt: skip
def test_mistakes_are_named(accel: InterpAccel, spec: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        accel.create_vcpu(spec)
    assert str(caught.value) == message

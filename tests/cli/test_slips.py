"""Slips are found before anything slow is imported; what is right is left to the command."""

import subprocess
import sys
from dataclasses import fields

import pytest

from invdiff.cli.groups import sampler_classes
from invdiff.cli.slips import find_slip, sampler_fields

SLIPS = {
    "reconstruct operator.sdt=3 operator=gaussian_blur": "did you mean operator.std?",
    "reconstruct operator.foo=3 operator=gaussian_blur": "'operator.foo'; operator has std, ",
    "reconstruct +operator.foo=3 operator=gaussian_blur": "unknown option 'operator.foo'; operator has",
    "reconstruct +foo=3": "unknown option 'foo'",
    "reconstruct +operator.std=3 operator=gaussian_blur": "write operator.std=3 without +",
    "reconstruct +prior=photo": "write prior=photo without +",
    "reconstruct prior=photos": "did you mean photo?",
    "reconstruct operator=inpanting": "did you mean inpainting?",
    "reconstruct device=cpu": "did you mean compute.device?",
    "reconstruct compute.devise=cpu": "did you mean compute.device?",
    "reconstruct smapler=dps": "did you mean sampler?",
    "reconstruct sampler=dps sampler.zta=1": "did you mean sampler.zeta?",
    "reconstruct sampler.steps=10": "choose a sampler to set its options, for example sampler=daps sampler.schedule.",
    "reconstruct sampler.draw_std=null": "for example sampler=daps sampler.draw_std=null",
    "reconstruct sampler.zeta=1": "for example sampler=dps sampler.zeta=1",
    "reconstruct --num_samples=3": "without dashes: num_samples=3",
    "reconstruct experiment=paper/dps_inpaintin": "did you mean paper/dps_inpainting?",
    "benchmark samplers=[dps,dapss]": "unknown sampler 'dapss'; did you mean daps?",
    "benchmark operators=[inpaint]": "did you mean inpainting?",
    "benchmark budgt.calls=[3]": "did you mean budget.calls?",
    "train recipe=phto": "did you mean photo?",
    "tune trails=3": "did you mean trials?",
}
RIGHT = (
    "reconstruct sampler=dps sampler.zeta=1 operator.keep=0.2 seed=3 output=a=b",
    "reconstruct experiment=paper/dps_inpainting sampler.zeta=1",
    "reconstruct sampler=callable sampler.file=mine.py:A sampler.settings.foo=1 trust=mine.py",
    "reconstruct operator=callable operator.file=a.py operator.parameters.foo=1",
    "reconstruct sampler=dps,daps -m sampler.schedule.steps=3",
    "reconstruct --config-dir=out --config-name=config sampler=best foo=1",
    "reconstruct hydra/launcher=joblib foo=1",
    "reconstruct sampler._target_=my.Sampler sampler.foo=1",
    "reconstruct ++operator.std=1 operator=gaussian_blur",
    "reconstruct +operator.foo=1 operator._target_=my.Operator",
    "tune +space.zeta=[0,1]",
    "benchmark samplers=[dps,{bold:{sampler:dps,zeta:2}}] data=[cat,generated] budget.calls=[100]",
    "benchmark data=cat operators=inpainting",
    "train data=photos/ recipe.unet.channels=1 prior=mixture",
    "check-prior data=cat prior.name=photo",
    "tune space.zeta=[0,1]",
    "list anything",
)


@pytest.mark.parametrize("words", SLIPS)
def test_slips(words: str) -> None:
    command, *rest = words.split()
    said = find_slip(command, rest)
    assert said is not None
    assert SLIPS[words] in said
    assert len(said) < 600


@pytest.mark.parametrize("words", RIGHT)
def test_what_is_right(words: str) -> None:
    command, *rest = words.split()
    assert find_slip(command, rest) is None


def test_settings_in_the_source_are_those_of_the_classes() -> None:
    found = sampler_fields()
    classes = {name: cls for name, cls in sampler_classes().items() if cls.__module__.startswith("invdiff.")}
    for name, cls in classes.items():
        assert name == "auto" or set(found[name]) == {field.name for field in fields(cls)}
    assert {*found, "auto"} == set(classes)


def test_no_torch_is_imported() -> None:
    code = (
        "import sys\nfrom invdiff.cli.main import main\n"
        "for words in (['reconstruct', 'operator.sdt=3'], ['benchmrk']):\n"
        "    sys.argv = ['invdiff', *words]\n"
        "    try: main()\n"
        "    except SystemExit as stop: assert stop.code == 2\n"
        "assert not {'torch', 'hydra', 'numpy'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert "did you mean benchmark?" in done.stderr

import subprocess
import sys

import torch

from lorafit.model.libraries import _compile_later
from tests.tiny import child_environment


def test_libraries_come_without_the_compiler_until_a_function_needs_it():
    program = (
        "import sys\n"
        "from lorafit.model.libraries import import_bitsandbytes, prepare_libraries\n"
        "prepare_libraries()\n"
        "import_bitsandbytes()\n"
        "import bitsandbytes, peft\n"
        "print('torch._inductor.compile_fx' in sys.modules)\n"
    )
    outcome = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env=child_environment()
    )
    assert outcome.returncode == 0, outcome.stderr
    assert outcome.stdout.strip() == "False"


def test_a_run_on_a_file_needs_neither_datasets_nor_pandas(train_arguments, tmp_path):
    program = (
        "import sys\n"
        "from lorafit.cli.main import main\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert not end.code, end.code\n"
        "print(sorted({'datasets', 'pandas', 'pyarrow'} & set(sys.modules)))\n"
    )
    outcome = subprocess.run(
        [sys.executable, "-c", program, *train_arguments(tmp_path / "run")],
        capture_output=True,
        text=True,
        env=child_environment(),
    )
    assert outcome.returncode == 0, outcome.stderr
    assert outcome.stdout.splitlines()[-1] == "[]"


def test_a_function_is_compiled_once_at_its_first_call():
    compiled = []

    def compiler(function, **options):
        compiled.append(options)
        return function

    def double(values):
        return values * 2

    later = _compile_later(compiler, dynamic=False)(double)
    assert compiled == []
    assert [float(later(torch.tensor(value))) for value in (1.0, 2.0)] == [2.0, 4.0]
    assert compiled == [{"dynamic": False}]

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


def run_program(program):
    outcome = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env=child_environment()
    )
    assert outcome.returncode == 0, outcome.stderr
    return outcome.stdout.splitlines()


def test_transformers_looks_through_its_files_once_and_offers_the_same_names():
    scan = (
        "import builtins, os\n"
        "opened = []\n"
        "def counting(path, *args, real=builtins.open, **kwargs):\n"
        "    opened.append(os.fspath(path))\n"
        "    return real(path, *args, **kwargs)\n"
        "builtins.open = counting\n"
    )
    told = (
        "import transformers.models\n"
        "models = [name for name in opened if '/models/' in name]\n"
        "print(len(models) == len(set(models)))\n"
        "print(len(transformers.__all__), len(transformers.models.__all__))\n"
    )
    ours = "from lorafit.model.libraries import prepare_libraries\nprepare_libraries()\n"
    once, names = run_program(scan + ours + told)
    twice, names_of_transformers = run_program(scan + told)
    assert (once, twice) == ("True", "False")
    assert names == names_of_transformers


def test_imports_are_left_alone_by_the_collector_and_what_comes_later_is_not():
    program = (
        "import gc, sys\n"
        "from lorafit.model.libraries import quick_imports\n"
        "with quick_imports():\n"
        "    assert not gc.isenabled()\n"
        "    import mailbox\n"
        "frozen = gc.get_freeze_count()\n"
        "with quick_imports():\n"
        "    import mailbox\n"
        "print(gc.isenabled(), frozen > 0, gc.get_freeze_count() == frozen)\n"
    )
    assert run_program(program) == ["True True True"]


def test_the_collector_stays_off_where_it_was_off():
    program = (
        "import gc\n"
        "from lorafit.model.libraries import quick_imports\n"
        "gc.disable()\n"
        "with quick_imports():\n    import mailbox\n"
        "print(gc.isenabled())\n"
    )
    assert run_program(program) == ["False"]

"""`ral-export RUN_FOLDER TARGET`: a run's model as a folder to share, with a model card; on request on the hub."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

from ral_system.config.choices import STAGES
from ral_system.errors import ConfigError, RalError, SetupError
from ral_system.launch.arguments import Parser
from ral_system.launch.mistakes import explain_import, fail

_DESCRIPTION = """\
Write the model of a run as a folder that transformers, vLLM and other libraries load without ral_system: weights with
adapters merged, tokenizer, processor, and a model card with method, data, results and versions.
"""
_EPILOG = """\
  ral-export runs/quickstart exported
  ral-export runs/quickstart exported --stage sft
  ral-export runs/7b exported --dtype bfloat16 --push-to-hub ORGANISATION/NAME
  ral-export runs/lora adapters --adapters

It exports the model of the last complete stage. The card contains no paths or names of this machine and no commands of
the run. A repository on the Hub is private unless --public is given; the token comes from HF_TOKEN or hf auth login.
Read the card before you publish it: it does not state the licence of your data.
"""


def main() -> None:
    """Export a run's model."""
    parser = Parser(prog="ral-export", description=_DESCRIPTION, epilog=_EPILOG)
    parser.add_argument("run_folder", type=Path, metavar="RUN_FOLDER", help="folder of the run")
    parser.add_argument("target", type=Path, metavar="TARGET", help="folder to write, which must not exist")
    parser.add_argument(
        "--stage", choices=STAGES, help="export the model of this stage (default: the last complete one)"
    )
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="data type of the weights (default: as saved)")
    parser.add_argument("--adapters", action="store_true", help="write only the LoRA adapters of the last stage")
    parser.add_argument("--push-to-hub", metavar="NAME", help="also upload it to the Hub as ORGANISATION/NAME")
    parser.add_argument("--public", action="store_true", help="make the repository on the Hub public")
    options = parser.parse_args()
    if options.public and options.push_to_hub is None:
        parser.error("--public has no effect without --push-to-hub")
    if options.adapters and options.dtype is not None:
        parser.error("--dtype is for whole models; adapters stay as they were saved")
    try:
        export(options)
    except RalError as error:
        fail(error)
    except ImportError as error:
        fail(explain_import(error))
    except OSError as error:
        fail(SetupError(f"{error.filename or options.target}: {error.strerror or error}"))


def export(options: Namespace) -> None:
    """Write the folder, and upload it if asked. Raises RalError."""
    if options.target.exists():
        raise ConfigError(f"{options.target} exists; give a folder that does not")
    from ral_system.export.hub import HubRepository
    from ral_system.export.lineage import lineage
    from ral_system.export.write import check_adapters, export_adapters, export_model
    from ral_system.observability.quiet import silence_third_party

    silence_third_party()
    found = lineage(options.run_folder.resolve(), options.stage)
    if options.adapters:
        check_adapters(found)
    hub = HubRepository(options.push_to_hub, public=options.public) if options.push_to_hub else None
    name = options.push_to_hub or options.target.name
    print(f"exporting the {'adapters' if options.adapters else 'model'} of {found.last.stage} in {options.run_folder}")
    if options.adapters:
        export_adapters(found, options.target, name)
    else:
        export_model(found, options.target, name, options.dtype)
    print(f"written to {options.target}; the card is {options.target / 'README.md'}")
    if hub is not None:
        print(f"uploading to {hub.url}")
        hub.upload(options.target)
        print(f"uploaded: {hub.url}")


if __name__ == "__main__":
    main()

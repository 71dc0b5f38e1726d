"""Runs transformers' own tests of its encoder models with this package's classes in their place.

    python tools/transformers_suite.py --tests CHECKOUT/tests [--markdown docs/transformers-suite.md]

`CHECKOUT` is transformers' source tree, of the version that is installed; `parameterized` has to be
there, too. Every test runs twice: with transformers' own class, as control, and with this package's.
A test that passes with theirs and not with ours needs a reason in `REASONS`: without one, the tool
says why it failed and exits with 1. It also does where a reason has become stale.

Left out are the tests of generation, of export to other runtimes, and those of pipelines, which
fetch models: an encoder does not generate, and is nothing to trace or export here.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import datetime
import fnmatch
import importlib
import logging
import pathlib
import sys
import types
import unittest
import unittest.mock
import warnings

FAMILIES = ("T5", "MT5", "UMT5")

# Bases of the test classes whose tests are left out, and where they come from.
LEFT_OUT = {
    "tests.generation.test_utils": "GenerationTesterMixin",
    "tests.exporters.test_export": "ExportTesterMixin",
    "tests.test_pipeline_mixin": "PipelineTesterMixin",
}

# Tests that pass with transformers' class and not with this package's, and why that is right.
REASONS: dict[str, str] = {
    "test_all_tensors_are_parameter_or_buffer": "makes a model without values, on device `meta`: refused, since weights are prepared for the kernels",
    "test_can_be_initialized_on_meta": "makes a model without values, on device `meta`: refused, since weights are prepared for the kernels",
    "test_init_weights_can_init_buffers": "makes a model without values, on device `meta`: refused, since weights are prepared for the kernels",
    "test_cannot_load_with_meta_device_context_manager": "PyTorch's default device has no say here: the model loads on the CPU, where it belongs",
    "test_can_init_all_missing_weights": "initialises missing weights: a checkpoint that lacks some is refused",
    "test_from_pretrained_no_checkpoint": "makes a model of a `state_dict`: refused by name, `from_hf` takes tensors in memory",
    "test_can_use_safetensors": "asks for `output_loading_info`: refused by name, a model that loads has everything",
    "test_load_save_without_tied_weights": "asks for `output_loading_info`: refused by name, a model that loads has everything",
    "test_model_weights_reload_no_missing_tied_weights": "asks for `output_loading_info`: refused by name, a model that loads has everything",
    "test_enable_input_require_grads": "needs gradients",
    "test_retain_grad_hidden_states_attentions": "needs gradients",
    "test_gradient_checkpointing_backward_compatibility": "needs gradients",
    "test_gradient_checkpointing_enable_disable": "needs gradients",
    "test_keep_in_fp32_modules": "looks for PyTorch layers kept in float32; here norms, embeddings and the residual stream always are",
    "test_keep_in_fp32_modules_exist": "looks for PyTorch layers kept in float32; here norms, embeddings and the residual stream always are",
    "test_model_get_set_embeddings": "sets embeddings: the model does not change",
    "test_sdpa_can_dispatch_non_composite_models": "looks for PyTorch layers of attention",
}


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What became of a test: `pass`, `fail` or `skip`, with the skip's reason or the error."""

    kind: str
    why: str = ""


class Result(unittest.TestResult):
    """Outcome by name of test; a test fails with any of its subtests."""

    def __init__(self) -> None:
        super().__init__()
        self.outcomes: dict[str, Outcome] = {}

    def _add(self, test: unittest.TestCase, outcome: Outcome) -> None:
        name = getattr(test, "test_case", test)._testMethodName
        if self.outcomes.get(name, Outcome("pass")).kind != "fail":
            self.outcomes[name] = outcome

    def addSuccess(self, test: unittest.TestCase) -> None:
        # Comes last, also where a subtest was skipped.
        if test._testMethodName not in self.outcomes:
            self._add(test, Outcome("pass"))

    def addSkip(self, test: unittest.TestCase, reason: str) -> None:
        self._add(test, Outcome("skip", reason))

    def _add_error(self, test: unittest.TestCase, error) -> None:
        self._add(test, Outcome("fail", f"{error[0].__name__}: {error[1]}"))
        if VERBOSE:
            sys.stderr.write(f"{test.id()}\n{self._exc_info_to_string(error, test)}\n")

    addError = addFailure = _add_error

    def addSubTest(self, test: unittest.TestCase, subtest, error) -> None:
        if error is not None:
            self._add_error(test, error)


VERBOSE = False


def load(tests: pathlib.Path) -> dict[str, tuple[types.ModuleType, type]]:
    """The test module and class of every family."""
    for module, mixin in LEFT_OUT.items():
        stand_in = types.ModuleType(module)
        setattr(stand_in, mixin, type(mixin, (), {}))
        sys.modules[module] = stand_in
    sys.path.insert(0, str(tests.resolve().parent))
    found = {}
    for family in FAMILIES:
        module = importlib.import_module(f"tests.models.{family.lower()}.test_modeling_{family.lower()}")
        found[family] = module, getattr(module, f"{family}EncoderOnlyModelTest")
    return found


def case_of(base: type, model_class: type) -> type:
    """The family's test class for this one model class."""
    common = sys.modules["tests.test_modeling_common"]

    def test_model_fp16_forward(self) -> None:
        # theirs is skipped on the CPU, which could not compute in float16 once
        self.model_tester.create_and_check_model_fp16_forward(*self.model_tester.prepare_config_and_inputs())

    def test_inputs_embeds_matches_input_ids(self) -> None:
        # theirs passes over classes that are no family's main model
        def get_values(mapping):
            names = [model_class.__name__] if mapping is common.MODEL_MAPPING_NAMES else []
            return [*real(mapping), *names]

        real = common.get_values
        with unittest.mock.patch.object(common, "get_values", get_values):
            base.test_inputs_embeds_matches_input_ids(self)

    own = {
        "all_model_classes": (model_class,),
        "test_model_fp16_forward": test_model_fp16_forward,
        "test_inputs_embeds_matches_input_ids": test_inputs_embeds_matches_input_ids,
    }
    return type(base.__name__, (base,), own)


def run(module: types.ModuleType, base: type, name: str, model_class: type, pattern: str) -> dict[str, Outcome]:
    """Outcomes of the family's tests with this class under that name."""
    result = Result()
    with unittest.mock.patch.object(module, name, model_class):
        case = case_of(base, model_class)
        names = [test for test in unittest.TestLoader().getTestCaseNames(case) if fnmatch.fnmatch(test, pattern)]
        # These are of another class.
        names = [test for test in names if "token_classification" not in test]
        unittest.TestSuite(map(case, names)).run(result)
    return result.outcomes


def reason_for(test: str) -> str | None:
    """The reason kept for a test."""
    return next((reason for pattern, reason in REASONS.items() if fnmatch.fnmatch(test, pattern)), None)


@dataclasses.dataclass(frozen=True)
class Row:
    """One test with the families it went alike for."""

    test: str
    families: tuple[str, ...]
    theirs: Outcome
    ours: Outcome

    @property
    def explained(self) -> bool:
        """Whether it passes, is nothing for either class, or has a reason."""
        return self.ours.kind == "pass" or self.theirs.kind != "pass" or reason_for(self.test) is not None

    @property
    def reason(self) -> str:
        """What the table says beside it."""
        if self.ours.kind == "pass":
            return ""
        if self.theirs.kind == "pass":
            return reason_for(self.test) or f"**unexplained**: {self.ours.why}"
        return self.theirs.why


def rows_of(outcomes: dict[str, tuple[dict[str, Outcome], dict[str, Outcome]]]) -> list[Row]:
    """One row a test and kind of result."""
    alike = collections.defaultdict(list)
    for family, (theirs, ours) in outcomes.items():
        for test in theirs:
            alike[test, theirs[test].kind, ours[test].kind].append(family)
    return [
        Row(test, tuple(families), outcomes[families[0]][0][test], outcomes[families[0]][1][test])
        for (test, _, _), families in sorted(alike.items())
    ]


def markdown(rows: list[Row], note: str | None) -> str:
    """The page of documentation."""
    import torch
    import transformers

    import quintic

    def cell(text: str) -> str:
        return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")

    def table(kept: list[Row]) -> list[str]:
        lines = ["| test | families | transformers | quintic | reason |", "|---|---|---|---|---|"]
        for row in kept:
            families = "all" if len(row.families) == len(FAMILIES) else ", ".join(row.families)
            lines.append(f"| `{row.test}` | {families} | {row.theirs.kind} | {row.ours.kind} | {cell(row.reason)} |")
        return lines

    counts = collections.Counter()
    for row in rows:
        for family in row.families:
            counts[family, "theirs", row.theirs.kind] += 1
            counts[family, "ours", row.ours.kind] += 1
            counts[family, "both"] += row.theirs.kind == row.ours.kind == "pass"
            counts[family, "reason"] += row.theirs.kind == "pass" != row.ours.kind
    compared = [row for row in rows if "pass" in (row.theirs.kind, row.ours.kind)]
    neither = [row for row in rows if "pass" not in (row.theirs.kind, row.ours.kind)]
    lines = [
        "# transformers' own tests",
        "",
        f"Its tests of encoder models, run on {datetime.date.today()} with its classes, as control, and with this "
        f"package's in their place: quintic {quintic.__version__}, transformers {transformers.__version__}, PyTorch "
        f"{torch.__version__.split('+')[0]}, Python {sys.version.split()[0]}. To run them again, in an environment "
        "with these and `parameterized`:",
        "",
        "```sh",
        f"git clone --depth 1 --branch v{transformers.__version__} https://github.com/huggingface/transformers",
        "python tools/transformers_suite.py --tests transformers/tests --markdown docs/transformers-suite.md",
        "```",
        "",
        "Left out are the tests of generation, of export to other runtimes, and those of pipelines, which fetch "
        "models. The test of float16, which is skipped on a CPU, runs; so does the one of `inputs_embeds`, which "
        "passes over encoder classes. A test of what encoders do not have (pictures, sound, routers, a base model with "
        "a head) passes with both without doing anything.",
        *(["", note] if note else []),
        "",
        "| family | pass with transformers | of these with quintic | with a reason why not | skipped or failing with "
        "transformers | pass with quintic alone |",
        "|---|---|---|---|---|---|",
    ]
    for family in FAMILIES:
        passing, both = counts[family, "theirs", "pass"], counts[family, "both"]
        others = counts[family, "theirs", "skip"] + counts[family, "theirs", "fail"]
        alone = counts[family, "ours", "pass"] - both
        lines.append(f"| {family} | {passing} | {both} | {counts[family, 'reason']} | {others} | {alone} |")
    lines += ["", "## Tests that pass", "", *table(compared)]
    lines += ["", "## Tests that pass with neither", "", *table(neither), ""]
    return "\n".join(lines)


def main() -> int:
    """Runs everything and writes the page."""
    global VERBOSE
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tests", type=pathlib.Path, required=True, help="folder `tests` of transformers' source tree")
    parser.add_argument("--markdown", type=pathlib.Path, help="file to write the table to")
    parser.add_argument("--note", help="a sentence for the page: what was particular about this run")
    parser.add_argument("--only", default="*", metavar="PATTERN", help="run only tests whose names match")
    parser.add_argument("--verbose", action="store_true", help="print the traceback of every failure")
    arguments = parser.parse_args()
    VERBOSE = arguments.verbose
    if arguments.markdown is not None and arguments.only != "*":
        parser.error("the page is of all tests: `--markdown` goes without `--only`")

    import transformers

    import quintic

    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    outcomes = {}
    for family, (module, base) in load(arguments.tests).items():
        name = f"{family}EncoderModel"
        theirs, ours = (
            run(module, base, name, getattr(package, name), arguments.only) for package in (transformers, quintic)
        )
        outcomes[family] = theirs, ours
    rows = rows_of(outcomes)
    for row in rows:
        print(f"{row.theirs.kind:5}{row.ours.kind:5}{row.test} ({', '.join(row.families)}): {row.reason}")
    if arguments.markdown is not None:
        arguments.markdown.write_text(markdown(rows, arguments.note), encoding="utf-8")

    wrong = [row.test for row in rows if not row.explained]
    reasons = {row.reason for row in rows}
    stale = [pattern for pattern, reason in REASONS.items() if reason not in reasons and arguments.only == "*"]
    for test in wrong:
        print(f"unexplained: {test}", file=sys.stderr)
    for pattern in stale:
        print(f"explained, but passes: {pattern}", file=sys.stderr)
    return 1 if wrong or stale else 0


if __name__ == "__main__":
    sys.exit(main())

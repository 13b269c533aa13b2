"""Strict settings for every test: shapes and types checked at run time, no silent promotion of dtypes or ranks."""

import os


os.environ.setdefault("SSMKIT_TYPECHECK", "1")  # read when ssmkit is imported
os.environ.setdefault("JAX_NUM_CPU_DEVICES", "8")  # the tests of meshes use them all, and all others the first

import hypothesis
import jax
import pytest
from checkpoint_files import saved  # noqa: F401 fixture
from command_line import checkpoint, own_cache, run, text_file  # noqa: F401 fixtures
from exported_models import artefact, artefact_copy, exported_source  # noqa: F401 fixtures
from generating import case, model, quick_compilation  # noqa: F401


jax.config.update("jax_enable_x64", True)  # for float64 references; the package itself asks for float32 by name
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

# Properties are tried on the same examples in every run; `--hypothesis-profile=search` looks for new ones.
hypothesis.settings.register_profile("repeatable", derandomize=True, database=None, deadline=None, max_examples=15)
hypothesis.settings.register_profile("search", deadline=None, max_examples=300)
hypothesis.settings.load_profile("repeatable")


# CI runs these on one Python only, hardly optimised. What they test is tested on the newest Python too, compiled as by
# users: by the laws over the registry (test_laws, with the float64 reference of every recurrence), golden logits, the
# engine's tests and the pages' code. Where rounding is all that is tested, tests run on both. Of a law, the first case
# of a class runs on the newest Python, and its variants on the other.
ONCE = """
    test_architecture test_array_kinds test_attention test_attention_memory test_blocks test_cache_file test_chat
    test_checkpoint test_checkpoint_configurations test_checkpoint_keys test_checkpoint_sources test_cli_batches
    test_cli_compile test_cli_mistakes test_cli_models test_cli_tokenizers test_compilation test_constructors
    test_export_damage test_files test_foreign test_generate_mistakes test_generate_texts test_hostile_artefacts
    test_hostile_checkpoints test_hostile_pickles test_hybrid_engine test_hybrids_falcon_h1 test_hybrids_jamba
    test_hybrids_lfm2_moe test_hybrids_nemotron_h test_hybrids_recurrent_gemma test_hybrids_spellings test_hybrids_xlstm
    test_hybrids_zamba2 test_ids test_inside test_kernel_costs test_kernel_forms test_keys test_layers
    test_linear_attention test_linear_rnn test_mamba test_mamba2 test_mamba_ssm test_model_config test_norms
    test_operators test_own_checks test_pairwise_decays test_precision test_products test_published test_quantize
    test_quantize_checkpoints test_recurrence test_recurrence_fields test_recurrence_mistakes test_resume test_room_law
    test_sampling test_scan_layers test_slow_decays test_sources test_stop_tokens test_tensor_parallel test_testing
    test_testing_mistakes test_testing_reports test_text test_tokenizer_files test_torch_pickle test_training_folders
    test_training_inputs test_training_runs test_tuning
""".split()


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Mark the tests of these files; those of others say it themselves."""
    for item in items:
        if item.path.stem in ONCE:
            item.add_marker(pytest.mark.once)


@pytest.fixture(scope="module", autouse=True)
def _forget_executables():
    """No module uses another's, and all together they would take several GiB."""
    yield
    jax.clear_caches()

"""Misspelled settings are named, and variables of other programs are not."""

from __future__ import annotations

import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.settings import Settings
from service.variables import edit_distance, misspelled, plain

NAMES = frozenset(name.upper() for name in Settings.model_fields)
SECRET = "s3cret-0123456789"  # noqa: S105 - a made-up one

COMMON = """
PATH HOME USER LOGNAME SHELL TERM LANG LC_ALL LC_CTYPE PWD OLDPWD SHLVL HOSTNAME TZ EDITOR PAGER TMPDIR TEMP TMP MAIL
DISPLAY COLORTERM COLUMNS LINES PS1 IFS HISTSIZE HISTFILE SSH_AUTH_SOCK SSH_CONNECTION XDG_RUNTIME_DIR XDG_CACHE_HOME
XDG_CONFIG_HOME XDG_DATA_HOME LD_LIBRARY_PATH LD_PRELOAD LIBRARY_PATH DEBIAN_FRONTEND http_proxy https_proxy no_proxy
HTTP_PROXY HTTPS_PROXY NO_PROXY ALL_PROXY PORT PORTS HOST HOSTS PROTO TYPE TYPES POST SORT API_KEYS APP_KEY APP_ENV
API_URL API_HOST API_TOKEN DEBUG ENV LOG LOGS LOG_DIR LOG_FILE LOG_PATH MODEL MODELS MODEL_NAME MODEL_PATH MODEL_DIR
MODEL_URL MODEL_TYPE ENGINES ENGINE_ID DEVICE DEVICES WORKERS WEB_CONCURRENCY TIMEOUT PYTHONPATH PYTHONHOME
PYTHONUNBUFFERED PYTHONDONTWRITEBYTECODE PYTHONHASHSEED PYTHON_VERSION PYTHONSAFEPATH PYTHON_PIP_VERSION VIRTUAL_ENV
CONDA_PREFIX CONDA_DEFAULT_ENV PIP_INDEX_URL PIP_EXTRA_INDEX_URL PIP_CACHE_DIR UV_CACHE_DIR UV_INDEX_URL GPG_KEY
PYTEST_CURRENT_TEST OMP_NUM_THREADS OMP_WAIT_POLICY MKL_NUM_THREADS OPENBLAS_NUM_THREADS KMP_AFFINITY
TOKENIZERS_PARALLELISM HF_HOME HF_TOKEN HF_HUB_OFFLINE HF_HUB_CACHE HF_HUB_ETAG_TIMEOUT HF_HUB_ENABLE_HF_TRANSFER
HF_ENDPOINT HUGGING_FACE_HUB_TOKEN TRANSFORMERS_CACHE TRANSFORMERS_OFFLINE TORCH_HOME TORCH_INDEX BAKE_MODEL
BAKE_REVISION TRITON_CACHE_DIR TRITON_INTERPRET MAX_JOBS MAX_TOKENS MAX_MODEL_LEN MAX_NUM_SEQS GPU_MEMORY_UTILIZATION
SERVED_MODEL CUDA_HOME CUDA_PATH CUDA_VERSION CUDA_VISIBLE_DEVICES CUDA_LAUNCH_BLOCKING CUDA_DEVICE_ORDER
CUDA_MODULE_LOADING CUDNN_VERSION NCCL_VERSION NCCL_DEBUG NVARCH NVIDIA_VISIBLE_DEVICES NVIDIA_DRIVER_CAPABILITIES
NVIDIA_REQUIRE_CUDA NV_CUDA_LIB_VERSION NVIDIA_PRODUCT_NAME PYTORCH_CUDA_ALLOC_CONF ROCR_VISIBLE_DEVICES
HIP_VISIBLE_DEVICES RUNPOD_POD_ID RUNPOD_API_KEY RUNPOD_AI_API_KEY RUNPOD_ENDPOINT_ID RUNPOD_WEBHOOK_GET_JOB
RUNPOD_WEBHOOK_POST_OUTPUT RUNPOD_WEBHOOK_POST_STREAM RUNPOD_WEBHOOK_PING RUNPOD_PING_INTERVAL RUNPOD_LOG_LEVEL
RUNPOD_DEBUG_LEVEL RUNPOD_GPU_COUNT RUNPOD_CPU_COUNT RUNPOD_MEM_GB RUNPOD_DC_ID RUNPOD_VOLUME_ID RUNPOD_PUBLIC_IP
RUNPOD_TCP_PORT_22 RUNPOD_POD_HOSTNAME RUNPOD_REALTIME_PORT RUNPOD_REALTIME_CONCURRENCY RUNPOD_INIT_TIMEOUT PUBLIC_KEY
JUPYTER_PASSWORD KUBERNETES_SERVICE_HOST KUBERNETES_SERVICE_PORT KUBERNETES_SERVICE_PORT_HTTPS KUBERNETES_PORT
KUBERNETES_PORT_443_TCP KUBERNETES_PORT_443_TCP_ADDR KUBERNETES_PORT_443_TCP_PORT KUBERNETES_PORT_443_TCP_PROTO
POD_NAME POD_NAMESPACE POD_IP NODE_NAME QDRANT_SERVICE_HOST QDRANT_SERVICE_PORT QDRANT_SERVICE_PORT_HTTP
QDRANT_SERVICE_PORT_GRPC QDRANT_PORT QDRANT_PORT_6333_TCP QDRANT_PORT_6333_TCP_ADDR QDRANT_PORT_6334_TCP_PORT
QDRANT_HEADLESS_SERVICE_HOST QDRANT_HOST QDRANT_HTTP_PORT QDRANT__SERVICE__API_KEY QDRANT__SERVICE__HTTP_PORT
QDRANT__SERVICE__GRPC_PORT QDRANT__LOG_LEVEL QDRANT__STORAGE__STORAGE_PATH QDRANT__CLUSTER__ENABLED OPENAI_API_KEY
OPENAI_BASE_URL AWS_ACCESS_KEY_ID AWS_SECRET_ACCESS_KEY AWS_REGION GOOGLE_APPLICATION_CREDENTIALS DATABASE_URL
REDIS_URL SENTRY_DSN GITHUB_TOKEN GITHUB_ACTIONS CI
""".split()  # noqa: SIM905 - a list this long is easier to read and to extend as words


def test_variables_of_other_programs_are_not_mistaken() -> None:
    """No common variable of a shell, Python, CUDA, Kubernetes, RunPod or Qdrant causes a warning."""
    assert len(COMMON) > 200
    assert list(misspelled({name.upper() for name in COMMON}, NAMES)) == []


@pytest.mark.parametrize(
    ("name", "setting"),
    [
        ("QDRANT_UR", "QDRANT_URL"),
        ("QDRNAT_URL", "QDRANT_URL"),
        ("QDRANTURL", "QDRANT_URL"),
        ("QUADRANT_URL", "QDRANT_URL"),
        ("QDRANT_APIKEY", "QDRANT_API_KEY"),
        ("QDRANT_COLECTION", "QDRANT_COLLECTION"),
        ("QDRANT_COLLECTIONSS", "QDRANT_COLLECTIONS"),
        ("QDRANT_GRPCPORT", "QDRANT_GRPC_PORT"),
        ("QDRANT_TRANPSORT", "QDRANT_TRANSPORT"),
        ("QDRANT_ALLOW_HTTPS_KEY", "QDRANT_ALLOW_HTTP_KEY"),
        ("APIKEY", "API_KEY"),
        ("API_KYE", "API_KEY"),
        ("ENGIN", "ENGINE"),
        ("DTPYE", "DTYPE"),
        ("MODELID", "MODEL_ID"),
        ("MODEL_IDS", "MODEL_ID"),
        ("SERVE_MODEL_NAME", "SERVED_MODEL_NAME"),
        ("MAX_CONCURENCY", "MAX_CONCURRENCY"),
        ("GPU_DEVICES", "GPU_DEVICE"),
        ("MAX_TEXT", "MAX_TEXTS"),
        ("qdrant_ulr", "QDRANT_URL"),
    ],
)
def test_a_misspelled_setting_is_named(name: str, setting: str, caplog: pytest.LogCaptureFixture) -> None:
    """A variable within two letters of a setting has no effect, and the warning names both, but not the value."""
    settings = Settings.from_environment({name: SECRET})
    assert not settings.model_fields_set
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert record.getMessage() == f"{name.upper()} is not a setting and has no effect; did you mean {setting}?"


def test_no_setting_is_mistaken_for_another(caplog: pytest.LogCaptureFixture) -> None:
    """Settings that resemble each other, and those that are empty, cause no warning."""
    Settings.from_environment(dict.fromkeys(NAMES, ""))
    Settings.from_environment({"QDRANT_COLLECTION": "a", "QDRANT_COLLECTIONS": "a", "QDRANT_ULR": ""})
    assert not caplog.records


WORDS = st.text("AB_", max_size=6)


@given(a=WORDS, b=WORDS, c=WORDS)
def test_the_distance_is_that_of_edits(a: str, b: str, c: str) -> None:
    """The distance is symmetric, 0 for equal names alone, 1 for one edit, and stops at 3."""
    assert edit_distance(a, b) == edit_distance(b, a)
    assert (edit_distance(a, b) == 0) == (a == b)
    assert edit_distance(a + "A" + b, a + b) == 1
    assert edit_distance(a + "CD" + b, a + "DC" + b) == 1
    assert edit_distance(a + c, b + c) <= edit_distance(a, b) <= 3


@given(text=st.text())
def test_a_plain_value_has_no_blanks_around_it(text: str) -> None:
    """Whatever is written, the value has no blanks around it, and quotes of both kinds around it change nothing."""
    value = plain(text)
    assert value == value.strip()
    assert plain(f'"{value}"') == plain(f"'{value}'") == value

# Everything runs in $(VENV), made on first use from constraints/ and reused until a pyproject.toml or constraint changes.
PYTHON ?= python3
VENV ?= .venv
DEMO ?= runs/demo
WORKERS ?= 2
BIN := $(VENV)/bin
PACKAGES := core ops/llmctl_ops $(wildcard plugins/*/llmctl_*)

.PHONY: help demo test parallel slow extras clients browser lint format docs site evidence sanitize wheels constraints clean
help:
	@echo "make demo         fine-tune the bundled starter model into $(DEMO)"
	@echo "make test         lint, then all tests, in WORKERS=2 processes"
	@echo "make parallel     tests of distributed training that test leaves out, a few minutes"
	@echo "make slow         tests that train for a minute or more, left out by test too"
	@echo "make extras       tests beside lm-evaluation-harness and PaddleSlim, in an environment of its own"
	@echo "make clients      clients of OpenAI's and Anthropic's APIs against the server, in environments of their own; ONLY=names"
	@echo "make browser      tests of the server's pages in Chromium, which must be installed"
	@echo "make lint         checks only, changes nothing"
	@echo "make format       format and fix what can be fixed"
	@echo "make docs         write the generated parts of docs/ anew"
	@echo "make site         build docs/ as a site in English and Chinese into build/site"
	@echo "make sanitize     build the operators with AddressSanitizer and UndefinedBehaviorSanitizer, and run their tests"
	@echo "make evidence     run the families' tests; write their evidence and the support matrix of README"
	@echo "make wheels       build the wheels of core, operators and families into dist/"
	@echo "make constraints  resolve the pinned versions anew, for Python 3.10 to 3.13"
	@echo "make clean        delete the environment, caches and $(DEMO)"

.PHONY: environment environment-dev
environment:
	@$(PYTHON) tools/environment.py $(VENV) cpu
environment-dev:
	@$(PYTHON) tools/environment.py $(VENV) cpu dev

demo: environment
	$(BIN)/llmctl --model llama finetune --output $(DEMO) --overwrite

test: lint
	$(BIN)/python -m pytest --numprocesses $(WORKERS) --dist loadfile

parallel: environment-dev
	$(BIN)/python -m pytest -m parallel --numprocesses $(WORKERS) --dist loadfile

slow: environment-dev
	$(BIN)/python -m pytest -m slow --numprocesses $(WORKERS)

extras:
	@$(PYTHON) tools/environment.py $(VENV)-extras cpu dev eval slim
	$(VENV)-extras/bin/python -m pytest -m "harness or slim"

clients: environment-dev
	$(BIN)/python -m pytest -m clients -k "$(ONLY)" tests/e2e/test_clients.py

browser:
	@$(PYTHON) tools/environment.py $(VENV) cpu browser
	$(BIN)/python -m pytest -m browser tests/e2e/test_pages_in_browser.py

lint: environment-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python tools/check_docstrings.py $(PACKAGES)
	$(BIN)/codespell
	$(BIN)/python tools/make_docs.py --check

format: environment-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: environment-dev
	$(BIN)/python tools/make_docs.py

site: environment-dev
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --config-file mkdocs.yml
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --config-file mkdocs.zh.yml
	@echo "built; read it with: $(BIN)/python -m http.server --bind 127.0.0.1 --directory build/site"

evidence: environment-dev
	$(BIN)/python -m pytest -q $(wildcard plugins/*/tests/test_*_conformance.py) -p llmctl.testing.plugin --llmctl-evidence
	$(BIN)/llmctl models --update-matrix README.md
	$(BIN)/llmctl models --update-matrix README.zh.md

sanitize: environment-dev
	$(BIN)/python tools/sanitize.py

wheels:
	@$(PYTHON) tools/environment.py $(VENV) cpu wheels
	$(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir dist . $(patsubst %/,./%,$(dir $(wildcard plugins/*/pyproject.toml)))
	rm -rf build/wheels
	LLMCTL_OPS_BUILD=require $(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir build/wheels ./ops
	if [ "$$(uname)" = Linux ]; \
	then PATH="$(abspath $(BIN)):$$PATH" auditwheel repair --wheel-dir dist build/wheels/*.whl; \
	else cp build/wheels/*.whl dist; fi

constraints:
	$(PYTHON) tools/make_constraints.py

clean:
	rm -rf $(VENV) $(DEMO) build .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
	rm -rf ops/build ops/llmctl_ops/*.so
	find core plugins ops -maxdepth 2 -name '*.egg-info' -type d -exec rm -rf {} +

# The gates: `make check` before every commit, in under two minutes. PYTHON names another environment's interpreter.
PYTHON ?= .venv/bin/python
BIN := $(dir $(PYTHON))

.PHONY: check lint imports types api cluster clients

check: lint imports types api

lint:
	$(BIN)ruff check .
	$(BIN)ruff format --check .

imports:
	$(BIN)lint-imports

types:
	$(BIN)mypy

api:
	$(PYTHON) -m pytest -q tests/test_api.py tests/test_imports.py

# The tests of the cluster, in an environment of their own: Ray on top of PYTHON's packages. Skipped aloud without Ray.
CLUSTER := build/cluster-venv
cluster: $(CLUSTER)/ready
	@if [ "$$(cat $(CLUSTER)/ready)" = yes ]; then \
		$(CLUSTER)/bin/python -m pytest -q -m cluster -p no:cacheprovider --reruns 1 -W ignore::DeprecationWarning \
			-W ignore::FutureWarning tests/test_cluster*.py; \
	else \
		echo "NOT RUN: the tests of the cluster. Ray cannot be installed here: $(CLUSTER)/install.log"; \
	fi

$(CLUSTER)/ready: requirements-cluster.txt
	$(PYTHON) -m venv --clear --without-pip $(CLUSTER)
	$(PYTHON) -c "import sysconfig; print(sysconfig.get_path('purelib'))" \
		> "$$($(CLUSTER)/bin/python -c "import sysconfig; print(sysconfig.get_path('purelib'))")/below.pth"
	if $(CLUSTER)/bin/python -m pip install -r requirements-cluster.txt > $(CLUSTER)/install.log 2>&1; \
		then echo yes > $@; else echo no > $@; fi

# Other people's programs, in an environment of their own. Skipped aloud where they cannot be installed.
CLIENTS := build/clients
clients: $(CLIENTS)/ready
	@if [ "$$(cat $(CLIENTS)/ready)" = yes ]; then \
		CLIENTS_PYTHON=$(CLIENTS)/bin/python $(PYTHON) -m pytest -q -m clients -p no:cacheprovider --reruns 1 \
			tests/test_clients.py; \
	else \
		echo "NOT RUN: the tests with clients. They cannot be installed here: $(CLIENTS)/install.log"; \
	fi

$(CLIENTS)/ready: requirements-clients.txt
	$(PYTHON) -m venv --clear $(CLIENTS)
	if { $(CLIENTS)/bin/python -m pip install -r requirements-clients.txt && \
		$(CLIENTS)/bin/python -m pip install --no-deps moshi==0.2.13; } > $(CLIENTS)/install.log 2>&1; \
		then echo yes > $@; else echo no > $@; fi

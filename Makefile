# docker-fw. `make help` lists all targets.

VERSION := $(shell sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)
DOCKER  ?= docker
IMAGE   ?= docker-fw:$(VERSION)
PLUGIN  ?= fw:latest
ENGINE  ?= 28.5.2
MINUTES ?= 30
LOAD    ?= 0
SECONDS ?= 60
SEED    ?=
RUNS    ?= 20
# Processes that run tests. Those of engines mostly wait: three for each processor.
WORKERS ?= 6
TIMES   ?= 10
# Options of pytest for the order of tests: say, ORDER=--randomly-seed=5, or ORDER="-p no:randomly" for that of the files.
ORDER   ?=

# Some machines set it: each process would compile all modules again.
unexport PYTHONDONTWRITEBYTECODE

VENV   := .venv
PYTHON := $(VENV)/bin/python
# Scanners and attack tools, which the tests run in network namespaces against the plugin.
SCANNERS := thc-ipv6 ipv6toolkit nmap
# Debian packages that the demo and the tests need. Engines are in root file systems of their own: Docker is not installed.
DEBIAN := python3 python3-venv python3-nftables nftables iptables iproute2 conntrack mmdebstrap \
          debian-archive-keyring busybox-static ca-certificates procps tcpdump $(SCANNERS)
# In addition, what virtual machines need; only `make test-vm` installs it.
DEBIAN_VM := qemu-system-x86 qemu-utils seabios e2fsprogs util-linux

# All targets that `make help` lists, and these.
.PHONY: $(shell sed -n 's/^\([a-z-]*\):.*## .*/\1/p' $(firstword $(MAKEFILE_LIST))) test-pure test-kernel test-engine

help: ## show this list
	@sed -n 's/^\([a-z-]*\):.*## /\1|/p' $(MAKEFILE_LIST) | awk -F'|' '{printf "  make %-16s %s\n", $$1, $$2}'

image: ## build the image (DOCKER, IMAGE)
	$(DOCKER) build -t $(IMAGE) -t docker-fw:latest .

plugin: image ## build build/plugin: config.json and rootfs, as `docker plugin create` takes them
	@$(MAKE) --no-print-directory build/plugin

# The image's files, flattened: a plugin's rootfs is one tree.
.PHONY: build/plugin
build/plugin:
	rm -rf build/plugin
	mkdir -p build/plugin/rootfs
	id=$$($(DOCKER) create $(IMAGE)) && $(DOCKER) export $$id | tar -x -C build/plugin/rootfs; \
	    status=$$?; $(DOCKER) rm $$id >/dev/null; exit $$status
	cp config.json build/plugin/

install: plugin ## build the image, create and enable the plugin, on this host's Docker (PLUGIN)
	@$(MAKE) --no-print-directory install-built

# Without building: makes the plugin from build/plugin as it is.
.PHONY: install-built
install-built:
	@! $(DOCKER) plugin inspect $(PLUGIN) >/dev/null 2>&1 || \
	    { echo "$(PLUGIN) is installed already; 'make uninstall' first" >&2; exit 1; }
	$(DOCKER) plugin create $(PLUGIN) build/plugin
	$(DOCKER) plugin enable $(PLUGIN)
	@echo "ready: docker network create -d $(PLUGIN) --ipv6 --subnet 2001:db8:1::/64 NAME"

uninstall: ## remove the plugin, its rules, its links and its image from this host's Docker
	@used=$$($(DOCKER) network ls -q --filter driver=$(PLUGIN) | xargs -r $(DOCKER) network inspect -f '{{.Name}}'); \
	    [ -z "$$used" ] || { echo "remove these networks first (docker network rm):" $$used >&2; exit 1; }
	-$(DOCKER) plugin disable -f $(PLUGIN)
	$(DOCKER) run --rm --network host --cap-add NET_ADMIN $(IMAGE) cleanup
	-$(DOCKER) plugin rm -f $(PLUGIN)
	-$(DOCKER) rmi $(IMAGE) docker-fw:latest

# Installs those of the packages that are missing; the argument is a list of them.
define debian
	@command -v apt-get >/dev/null || { echo "make $(MAKECMDGOALS) needs Debian" >&2; exit 1; }
	@have=$$(dpkg-query -W -f='$${db:Status-Abbrev}$${Package}\n' $(1) 2>/dev/null | sed -n 's/^ii //p'); \
	    missing=$$(printf '%s\n' $(1) | grep -vxF "$$have" || true); \
	    [ -z "$$missing" ] || { echo "installing" $$missing; apt-get update -qq && \
	    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $$missing >/dev/null; }
endef

$(VENV)/ready: requirements-dev.lock
	$(call debian,$(DEBIAN))
	/usr/bin/python3 -m venv --system-site-packages --clear $(VENV)
	$(PYTHON) -m pip install -q --require-hashes -r requirements-dev.lock
	@touch $@

demo: $(VENV)/ready ## start an isolated engine, the plugin and compose stacks, probe them from outside, show a table (ENGINE)
	$(PYTHON) -m tests.demo --engine $(ENGINE)

test: $(VENV)/ready ## run lint and all tests: pure, kernel, engine
	@$(MAKE) --no-print-directory -j 2 lint collected
	timeout --foreground --kill-after=60 1h $(PYTHON) -m pytest -n $(WORKERS) --no-loadscope-reorder $(ORDER) # in the order of tests/conftest.py: engines first

# pytest compiles each test module once, and keeps it: beside lint, and not in all processes at the same time.
.PHONY: collected
collected: $(VENV)/ready
	@$(PYTHON) -m pytest --collect-only >/dev/null 2>&1 || : # the run itself shows what is wrong

test-pure: $(VENV)/ready
	$(PYTHON) -m pytest -m "not kernel and not engine"

test-kernel: $(VENV)/ready
	$(PYTHON) -m pytest -m kernel

test-engine: $(VENV)/ready
	$(PYTHON) -m pytest -m engine

referee-docker: $(VENV)/ready ## try Docker's promises on all engines, without and with docker-fw → docs/docker-promises.md (ARGS)
	$(PYTHON) -m tests.promises $(ARGS)

test-many: $(VENV)/ready ## run all tests RUNS times in a row in other orders, beside LOAD busy loops → build/test-many
	$(PYTHON) -m tests.many --runs $(RUNS) --load $(LOAD)

test-long: $(VENV)/ready ## run all tests with TIMES as many random inputs, at every step, on every engine (hours)
	TEST_TIMES=$(TIMES) FW_TEST_CRASHES=1 FW_TEST_WHOLE_STARTS=1 FW_TEST_STARTS=$$((4 * $(TIMES))) \
	    FW_ENGINES="$$($(PYTHON) -c 'from tests.lab import ENGINES; print(*ENGINES)')" \
	    $(PYTHON) -m pytest -n $(WORKERS) --no-loadscope-reorder -o timeout=7200

.PHONY: vm-packages
vm-packages:
	$(call debian,$(DEBIAN_VM))

test-vm: $(VENV)/ready vm-packages ## run the tests on virtual machines of four Debian releases (the first time: an hour for the images)
	$(PYTHON) -m tests.vm images
	$(PYTHON) -m pytest -v tests/vm

torture: $(VENV)/ready ## disturb everything around the plugin (kills, reboots, flushes) while probing from outside (ENGINE, MINUTES, LOAD)
	$(PYTHON) -m tests.torture --engine $(ENGINE) --minutes $(MINUTES) --load $(LOAD)

.PHONY: scanner-packages
scanner-packages:
	$(call debian,$(SCANNERS))

referee-scanners: $(VENV)/ready scanner-packages ## run thc-ipv6, ipv6toolkit and nmap against the plugin → docs/scanners.md (ARGS)
	$(PYTHON) -m tests.referees.scanners --write $(ARGS)

referee-policy: $(VENV)/ready ## compare with Kubernetes' NetworkPolicy: all cases, and some by chance → docs/networkpolicy.md (SEED)
	$(PYTHON) -m tests.referees.networkpolicy --write $(if $(SEED),--seed $(SEED))

fuzz: $(VENV)/ready ## run atheris on each parser of data from outside (SECONDS for each)
	$(PYTHON) -m pip install -q --require-hashes --no-deps -r requirements-fuzz.lock
	$(PYTHON) -m tests.fuzz --seconds $(SECONDS)

mutation: $(VENV)/ready ## weaken each rule and each condition: a test must fail; writes docs/mutation.md (MUTATION=options)
	$(PYTHON) -m tests.mutation $(MUTATION)

bench: $(VENV)/ready ## measure speed and memory against Docker without docker-fw → build/bench.json (ENGINE, ARGS; --document: docs/performance.md)
	$(PYTHON) -m tests.bench --engine $(ENGINE) $(ARGS)

lint: $(VENV)/ready ## run ruff and mypy
	$(PYTHON) -m ruff check plugin tests
	$(PYTHON) -m mypy

lock: $(VENV)/ready ## lock new versions of the dependencies, with hashes
	$(PYTHON) -m pip install -q pip-tools
	for extra in "" "--extra=dev"; do \
	    $(PYTHON) -m piptools compile -q --upgrade --generate-hashes --strip-extras --allow-unsafe --no-header \
	        --no-emit-index-url --no-emit-find-links --no-emit-options $$extra \
	        -o requirements$${extra:+-dev}.lock pyproject.toml; \
	done

clean: ## remove build results (not the lab's cache in /var/cache/docker-fw-lab)
	rm -rf build $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis docker_fw.egg-info

# docker-fw. `make help` lists all targets.

VERSION := $(shell sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)
DOCKER  ?= docker
IMAGE   ?= docker-fw:$(VERSION)
PLUGIN  ?= fw:latest
ENGINE  ?= 28.5.2
MINUTES ?= 15
SECONDS ?= 60

VENV   := .venv
PYTHON := $(VENV)/bin/python
# Scanners and attack tools, which the tests run in network namespaces against the plugin.
SCANNERS := thc-ipv6 ipv6toolkit nmap
# Debian packages that the demo and the tests need. Engines are in root file systems of their own: Docker is not installed.
DEBIAN := python3 python3-venv python3-nftables nftables iptables iproute2 conntrack mmdebstrap \
          debian-archive-keyring busybox-static ca-certificates procps tcpdump $(SCANNERS)

.PHONY: help image plugin install uninstall demo test test-pure test-kernel test-engine referee-scanners torture fuzz bench lint lock clean

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

# Install those of these Debian packages that are missing.
define install
@missing=$$(dpkg-query -W -f='$${db:Status-Abbrev}$${Package}\n' $(1) 2>/dev/null | sed -n 's/^ii //p' | sort > /tmp/docker-fw.have; \
    printf '%s\n' $(1) | sort | comm -23 - /tmp/docker-fw.have; rm -f /tmp/docker-fw.have); \
    [ -z "$$missing" ] || { echo "installing" $$missing; apt-get update -qq && \
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $$missing >/dev/null; }
endef

$(VENV)/ready: requirements-dev.lock
	@command -v apt-get >/dev/null || { echo "make $(MAKECMDGOALS) needs Debian" >&2; exit 1; }
	$(call install,$(DEBIAN))
	/usr/bin/python3 -m venv --system-site-packages --clear $(VENV)
	$(PYTHON) -m pip install -q --require-hashes -r requirements-dev.lock
	@touch $@

demo: $(VENV)/ready ## start an isolated engine, the plugin and compose stacks, probe them from outside, show a table (ENGINE)
	$(PYTHON) -m tests.demo --engine $(ENGINE)

test: $(VENV)/ready lint ## run lint and all tests: pure, kernel, engine
	$(PYTHON) -m pytest -n 4 --no-loadscope-reorder # engines first: they take longest, and mostly wait

test-pure: $(VENV)/ready
	$(PYTHON) -m pytest -m "not kernel and not engine"

test-kernel: $(VENV)/ready
	$(PYTHON) -m pytest -m kernel

test-engine: $(VENV)/ready
	$(PYTHON) -m pytest -m engine

referee-scanners: $(VENV)/ready ## run every case of thc-ipv6, ipv6toolkit and nmap against the plugin → docs/scanners.md
	$(call install,$(SCANNERS))
	$(PYTHON) -m tests.referees.scanners --write

torture: $(VENV)/ready ## disturb everything around the plugin (kills, reboots, flushes) while probing from outside (ENGINE, MINUTES)
	$(PYTHON) -m tests.torture --engine $(ENGINE) --minutes $(MINUTES)

fuzz: $(VENV)/ready ## run atheris on each parser of data from outside (SECONDS for each)
	$(PYTHON) -m pip install -q --require-hashes --no-deps -r requirements-fuzz.lock
	$(PYTHON) -m tests.fuzz --seconds $(SECONDS)

bench: $(VENV)/ready ## measure speed and memory against Docker's bridge in the same run → build/bench.json (ENGINE)
	$(PYTHON) -m tests.bench --engine $(ENGINE)

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

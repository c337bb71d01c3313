# The peers FedSight is measured against, in an environment of their own (included by Makefile).
#
# .venv-peers sees the packages of .venv behind its own, so that every contestant trains with the
# very same torch and numpy. 'make clean-peers peers' makes it afresh after .venv changed.

PEERS := .venv-peers
PEER_PINS := benchmarks/peers-constraints.txt

# Their codecs alone are measured, so of what OpenFL and FedLab ask for only this is installed.
CODECS_NEED := dynaconf tqdm scikit-learn joblib threadpoolctl narwhals

.PHONY: peers clean-peers

peers: $(PEERS)/.stamp  ## install what benchmarks compare with (Flower, pfl, codecs of OpenFL and FedLab)

$(PEERS)/.stamp: $(PEER_PINS) benchmarks/peers.mk benchmarks/share_packages.py
	test -x .venv/bin/python || { echo "run 'make' first: peers borrow torch from .venv"; exit 1; }
	rm -rf $(PEERS)
	.venv/bin/python -m venv $(PEERS)
	$(PEERS)/bin/python benchmarks/share_packages.py .venv
	PYTHONPATH= $(PEERS)/bin/python -m pip install --quiet --disable-pip-version-check \
		--constraint $(PEER_PINS) --constraint $(PEERS)/shared-constraints.txt \
		'flwr[simulation]==1.41.*' 'pfl[pytorch]==0.6.*'
	PYTHONPATH= $(PEERS)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps \
		--constraint $(PEER_PINS) openfl fedlab $(CODECS_NEED)
	$(PEERS)/bin/python benchmarks/share_packages.py .venv --check
	touch $@

clean-peers:
	rm -rf $(PEERS)

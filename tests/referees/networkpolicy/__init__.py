"""Kubernetes' NetworkPolicy as a referee: `make referee-policy`.

`spec` has the nouns of the specification and refuses what its API refuses; `manifest` reads them from YAML. `evaluator`
is the truth: it knows nothing of docker-fw. `cases` is the registry of case families, which are in `families`.
`translation` writes labels for the policies of a cluster. `placing` puts the pods on networks, `expected` has what
docker-fw promises where the two differ, `pure` asks the plugin's verdicts and `wire` sends packets. `report` writes
docs/networkpolicy.md.
"""

"""Compare unlearning methods: methods x objectives x forget sets x seeds, from one YAML file to one page.

Settings are selected without the oracle, on seeds that are not reported. Every task writes one folder, named by a
digest of everything that decides its result, so that an interrupted bench can be continued.

======================  ================================================================================
``grid``                the configuration: a YAML file as a frozen dataclass
``plan``                the tasks of a grid, and which methods do not apply
``runner``              runs a grid from plan to page
``worker``              runs one task and writes its folder
``selection``           selects the setting of a method: utility on V, membership of F against V
``estimate``            estimates the cost of a grid before it is run
``results``             the results of all tasks as one JSON-serializable mapping
``tables``              rows, ranking, CSV and JSON (numpy only)
``charts``, ``page``    the page: ranking, cost x gap x utility, one card per method (numpy only)
======================  ================================================================================

Example:
    >>> from efface.bench.grid import read_grid
    >>> from efface.bench.runner import run_bench
    >>> run_bench(read_grid(Path("bench.yaml")), Path("runs/bench"))  # doctest: +SKIP

"""

"""Bench: methods x objectives x forget sets x seeds, as idempotent folders; settings are chosen without the oracle.

``grid``      what is asked: a YAML file as a frozen dataclass
``plan``      the tasks that answer it, each with everything that decides its result; what does not apply, and why
``work``      one task: a folder that is complete or not there
``pool``      one-thread processes that outlive neither a Ctrl-C nor the death of whoever started them
``choice``    which setting of a method is reported: utility on V, membership of F against V
``estimate``  what it would cost, before it is paid
``tables``    results as rows, CSV and JSON           (numpy only)
``charts``, ``page``  the page: ranking, cost x gap x utility, a card for each method        (numpy only)
``course``    all of it in order
"""

"""Runs cases of the Autobahn suite against a server that says back what it hears: autobahn.py ADDRESS CASE…, where a case may
have wildcards. Prints what became of each as JSON: how the server behaved, and how it closed."""

import asyncio
import json
import os
import sys

import kosoku


async def main(address, *cases):
    try:
        results = await kosoku.run_fuzzingclient(address, list(cases), concurrency=4)
    except kosoku.FailureError as failure:
        results = failure.results
    print(json.dumps({case.case_id: [case.behavior.value, case.behavior_close.value] for case in results}))


asyncio.run(main(*sys.argv[1:]))
# Everything is said; the interpreter, as it ends, now and then trips over threads of the library's.
sys.stdout.flush()
os._exit(0)

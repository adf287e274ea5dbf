"""Secure aggregation against Flower's SecAgg+ and TenSEAL's CKKS: seconds of a client and of the server, bytes, memory.

    python benchmarks/secagg.py --json [--clients 5,10,20] [--params 10000000] [--bits 32] [--repeat 3]

One client is lost after the shares are dealt. A client's time is that of all its stages with its journal's disk writes; the
server's that of everything between the first advert and the mean. Flower's own functions do Flower's work, in the order of its
workflow and without its transport; ours do without transport too. Seconds are of the processor (all threads together), since
the wall clock of a shared machine measures its neighbours; the wall's are beside them. The keystream is the AES-256-CTR output
that a client needs, without anything else. TenSEAL is left out when it is not installed (it is no requirement of fedpacs).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from aggregator_client.secagg import masks
from aggregator_client.secagg.ring import LIMBS
from tests.aggregator_client.secagg.cohort import Cohort


class Clock:
    """Adds up processor and wall seconds by name."""

    def __init__(self) -> None:
        self.cpu: dict[str, float] = {}
        self.wall: dict[str, float] = {}

    def __call__(self, name: str, work: Callable[[], Any]) -> Any:
        cpu, wall = time.process_time(), time.perf_counter()
        try:
            return work()
        finally:
            self.cpu[name] = self.cpu.get(name, 0.0) + time.process_time() - cpu
            self.wall[name] = self.wall.get(name, 0.0) + time.perf_counter() - wall


def ours(clients: int, params: int, bits: int) -> dict[str, Any]:
    """One round; the client that is timed is the second, which is there to the end."""
    clock, sent, received = Clock(), 0, 0
    with tempfile.TemporaryDirectory() as folder:
        made = Cohort(Path(folder), clients, 1, bits=bits, clip=1.0)
        made.size = params
        update = np.random.default_rng(0).normal(0, 0.01, params).astype(np.float32)
        plan, me, lost = made.plan(), made.names[1], made.names[-1]
        server = clock("server", lambda: made.server(plan))

        def ask(site: str, what: Callable[[], Any], size: Callable[[Any], int] = len) -> Any:
            nonlocal sent
            answer = clock("client" if site == me else "others", what)
            sent += size(answer) if site == me else 0
            return answer

        def whole(message: Any) -> int:
            return sum(len(part) for part in message.parts.values())

        for site in made.names:
            answer = ask(site, lambda site=site: made.client(site, plan).advert())
            clock("server", lambda site=site, answer=answer: server.take_advert(site, answer))
        adverts = clock("server", server.adverts)
        for site in made.names:
            answer = ask(site, lambda site=site: made.client(site, plan).shares(adverts), whole)
            clock("server", lambda site=site, answer=answer: server.take_shares(site, answer))
        first = clock("server", lambda: server.dealt(me))
        for site in made.names:
            if site == lost:
                continue
            own = np.zeros(params + LIMBS, np.float32)  # as in a node: the change is masked where it lies
            own[:params] = update
            out = own.view("<u4") if bits == 32 else None
            dealt = first if site == me else clock("server", lambda site=site: server.dealt(site))
            masked = ask(
                site,
                lambda site=site, dealt=dealt, own=own, out=out: made.client(site, plan).masked(
                    dealt, own[:params], 100, out
                ),
                lambda one: len(one[0]) + one[1].nbytes,
            )
            clock("server", lambda site=site, masked=masked: server.take_masked(site, *masked))
            del masked
        survivors = clock("server", server.survivors)
        for site in server.surviving:
            answer = ask(site, lambda site=site: made.client(site, plan).agree(survivors))
            clock("server", lambda site=site, answer=answer: server.take_agreement(site, answer))
        agreements = clock("server", server.agreements)
        for site in server.agreeing:
            answer = ask(site, lambda site=site: made.client(site, plan).unmask(agreements), whole)
            clock("server", lambda site=site, answer=answer: server.take_reveal(site, answer))
        mean = clock("server", lambda: server.finish().mean())
        error = float(np.abs(mean - update).max())
        received = len(plan) + len(adverts) + whole(first) + len(survivors) + len(agreements)
        made.close()
    word = bits // 8

    def keystream() -> None:
        for index in range(clients):
            words = masks.Keystream(bytes([index]) * 32, word)
            for at in range(0, params, masks.BLOCK):
                words.next(min(masks.BLOCK, params - at))

    clock("keystream", keystream)
    return {
        "cpu": clock.cpu,
        "wall": clock.wall,
        "bytes_up": sent,
        "bytes_down": received,
        "bytes_ratio": sent / (4 * params),
        "traffic_ratio": (sent + received + 4 * params) / (8 * params),  # with the model's way down, as without secrecy
        "max_error": error,
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10,
    }


def flower(clients: int, params: int) -> dict[str, Any]:
    """Flower's SecAgg+ on a complete graph with its default ranges and the same threshold."""
    from flwr.app import ConfigRecord
    from flwr.common import bytes_to_ndarray, ndarrays_to_parameters
    from flwr.common.secure_aggregation.crypto.shamir import combine_shares
    from flwr.common.secure_aggregation.crypto.symmetric_encryption import (
        generate_shared_key,
    )
    from flwr.common.secure_aggregation.ndarrays_arithmetic import (
        factor_extract,
        get_parameters_shape,
        parameters_addition,
        parameters_mod,
        parameters_subtraction,
    )
    from flwr.common.secure_aggregation.quantization import dequantize
    from flwr.common.secure_aggregation.secaggplus_constants import Key
    from flwr.common.secure_aggregation.secaggplus_utils import pseudo_rand_gen
    from flwr.supercore.primitives.asymmetric import bytes_to_private_key, bytes_to_public_key

    mod = import_module("flwr.client.mod.secure_aggregation.secaggplus_mod")  # the package has a function of that name
    clock, sent = Clock(), 0
    update = np.random.default_rng(0).normal(0, 0.01, params).astype(np.float32)
    parameters = ndarrays_to_parameters([update])
    names, threshold = list(range(1, clients + 1)), 2 * clients // 3 + 1
    settings = {
        Key.SAMPLE_NUMBER: clients,
        Key.SHARE_NUMBER: clients,
        Key.THRESHOLD: threshold,
        Key.CLIPPING_RANGE: 8.0,
        Key.TARGET_RANGE: 1 << 22,
        Key.MOD_RANGE: 1 << 32,
        Key.MAX_WEIGHT: 1000.0,
    }
    states, keys, boxes = {}, {}, {}
    me, lost = 2, clients
    role = lambda nid: "client" if nid == me else "others"  # noqa: E731
    for nid in names:
        states[nid] = mod.SecAggPlusState(nid=nid)
        out = clock(role(nid), lambda nid=nid: mod._setup(states[nid], ConfigRecord(settings)))
        keys[str(nid)] = [out[Key.PUBLIC_KEY_1], out[Key.PUBLIC_KEY_2]]
        sent += sum(map(len, keys[str(nid)])) if nid == me else 0
    for nid in names:
        out = clock(role(nid), lambda nid=nid: mod._share_keys(states[nid], ConfigRecord(keys)))
        boxes[nid] = dict(zip(out[Key.DESTINATION_LIST], out[Key.CIPHERTEXT_LIST], strict=True))
        sent += sum(map(len, boxes[nid].values())) if nid == me else 0
    total = None
    survivors = [nid for nid in names if nid != lost]
    for nid in survivors:
        others = [one for one in names if one != nid]
        given = ConfigRecord({Key.SOURCE_LIST: others, Key.CIPHERTEXT_LIST: [boxes[one][nid] for one in others]})
        out = clock(
            role(nid), lambda nid=nid, given=given: mod._collect_masked_vectors(states[nid], given, 100, parameters)
        )
        sent += sum(map(len, out[Key.MASKED_PARAMETERS])) if nid == me else 0

        def take(out: Any = out, total: Any = total) -> Any:
            vector = [bytes_to_ndarray(one) for one in out[Key.MASKED_PARAMETERS]]
            return vector if total is None else parameters_addition(total, vector)

        total = clock("server", take)
        del out
    shares: dict[int, list[bytes]] = {nid: [] for nid in names}
    ask = ConfigRecord({Key.ACTIVE_NODE_ID_LIST: survivors, Key.DEAD_NODE_ID_LIST: [lost]})
    for nid in survivors:
        out = clock(role(nid), lambda nid=nid: mod._unmask(states[nid], ask))
        sent += sum(map(len, out[Key.SHARE_LIST])) if nid == me else 0
        for owner, share in zip(out[Key.NODE_ID_LIST], out[Key.SHARE_LIST], strict=True):
            shares[owner].append(share)

    def finish() -> Any:
        vector = parameters_mod(total, 1 << 32)
        for nid, held in shares.items():
            secret = combine_shares(held)
            if nid != lost:
                vector = parameters_subtraction(vector, pseudo_rand_gen(secret, 1 << 32, get_parameters_shape(vector)))
                continue
            for other in survivors:
                key = generate_shared_key(bytes_to_private_key(secret), bytes_to_public_key(keys[str(other)][0]))
                pair = pseudo_rand_gen(key, 1 << 32, get_parameters_shape(vector))
                vector = parameters_addition(vector, pair) if nid > other else parameters_subtraction(vector, pair)
        weight, vector = factor_extract(parameters_mod(vector, 1 << 32))
        result = dequantize(vector, 8.0, 1 << 22)
        for one in result:
            one += -(len(survivors) - 1) * 8.0
            one *= (1 << 22) / weight
        return result

    mean = clock("server", finish)
    return {
        "cpu": clock.cpu,
        "wall": clock.wall,
        "bytes_up": sent,
        "bytes_ratio": sent / (4 * params),
        "max_error": float(np.abs(mean[0] - update).max()),
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10,
    }


def tenseal(params: int) -> dict[str, Any]:
    """A client's encryption with CKKS (8192, 60/40/40/60 bits), 4096 values a ciphertext."""
    import tenseal as ts

    context = ts.context(ts.SCHEME_TYPE.CKKS, poly_modulus_degree=8192, coeff_mod_bit_sizes=[60, 40, 40, 60])
    context.global_scale = 2**40
    update = np.random.default_rng(0).normal(0, 0.01, params)
    clock, sent = Clock(), 0

    def encrypt() -> None:
        nonlocal sent
        for at in range(0, params, 4096):
            sent += len(ts.ckks_vector(context, update[at : at + 4096]).serialize())

    clock("client", encrypt)
    return {"cpu": clock.cpu, "wall": clock.wall, "bytes_up": sent, "bytes_ratio": sent / (4 * params)}


def apart(argv: list[str]) -> dict[str, Any]:
    """One measurement in a process of its own, so that its peak memory is its own."""
    done = subprocess.run([sys.executable, __file__, *argv], check=True, capture_output=True, text=True, env=os.environ)
    return json.loads(done.stdout.splitlines()[-1])


def median(rows: list[dict[str, Any]], *path: str) -> float:
    values = []
    for row in rows:
        value: Any = row
        for key in path:
            value = value[key]
        values.append(float(value))
    return statistics.median(values)


def compare(clients: int, params: int, bits: int, repeat: int) -> dict[str, Any]:
    mine, theirs = [], []
    for _ in range(repeat):  # in turns, so that both meet the same neighbours
        for who, rows in (("ours", mine), ("flower", theirs)):
            rows.append(apart(["--one", who, "--clients", str(clients), "--params", str(params), "--bits", str(bits)]))
    client, server = median(mine, "cpu", "client"), median(mine, "cpu", "server")
    facts = {
        "clients": clients,
        "client_seconds": client,
        "server_seconds": server,
        "keystream_seconds": median(mine, "cpu", "keystream"),
        "client_wall": median(mine, "wall", "client"),
        "server_wall": median(mine, "wall", "server"),
        "flower_client_seconds": median(theirs, "cpu", "client"),
        "flower_server_seconds": median(theirs, "cpu", "server"),
        "flower_client_wall": median(theirs, "wall", "client"),
        "flower_server_wall": median(theirs, "wall", "server"),
        "bytes_ratio": median(mine, "bytes_ratio"),
        "traffic_ratio": median(mine, "traffic_ratio"),
        "flower_bytes_ratio": median(theirs, "bytes_ratio"),
        "max_error": median(mine, "max_error"),
        "flower_max_error": median(theirs, "max_error"),
        "peak_mb": median(mine, "peak_mb"),
        "flower_peak_mb": median(theirs, "peak_mb"),
    }
    facts["client_speedup"] = facts["flower_client_seconds"] / client
    facts["server_speedup"] = facts["flower_server_seconds"] / server
    facts["client_against_keystream"] = client / facts["keystream_seconds"]
    return {key: round(value, 6) for key, value in facts.items()}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--clients", default="5,10,20")
    parser.add_argument("--params", type=int, default=10_000_000)
    parser.add_argument("--bits", type=int, default=32, choices=(16, 32, 64))
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--one", default="", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        clients = int(given.clients.split(",")[0])
        work = {
            "ours": lambda: ours(clients, given.params, given.bits),
            "flower": lambda: flower(clients, given.params),
            "tenseal": lambda: tenseal(given.params),
        }
        print(json.dumps(work[given.one]()))
        return 0
    rows = []
    for clients in given.clients.split(","):
        rows.append(compare(int(clients), given.params, given.bits, given.repeat))
        print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    last = rows[-1]
    facts: dict[str, Any] = {"params": given.params, "bits": given.bits, "rows": rows}
    facts |= {key: last[key] for key in ("client_speedup", "server_speedup", "bytes_ratio", "client_against_keystream")}
    try:
        peer = apart(["--one", "tenseal", "--params", str(given.params)])
        facts["tenseal"] = peer | {"client_speedup": peer["cpu"]["client"] / last["client_seconds"]}
    except subprocess.CalledProcessError as error:
        facts["tenseal"] = f"not measured: {error.stderr.strip().splitlines()[-1]}"
    facts["machine"] = f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}"
    facts["versions"] = {name: version(name) for name in ("flwr", "cryptography", "numpy")}
    print(json.dumps(facts) if given.json else json.dumps(facts, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())

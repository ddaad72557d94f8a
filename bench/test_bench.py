"""Tests of what decides over a run, without any server.

Promise: a contestant that does not start fails the run unless WITHOUT names it, two runs agree by their ratios, and the loads of
a case are those that its name says.
"""

import contextlib
import io
import os
import sys
import tempfile
import time
import unittest
from pathlib import Path
from unittest import mock

import cases
import contestants
import install
import load
import report
import run
import runs
from cases import CASES, IDLE, IDLE_KINDS, LARGE, MANY_IDLE, MISSES_RESP, NEEDS, Bench, Record, Stage, many_idle
from contestants import LIMIT, MEMCACHED, NGINX_FIXED, PROGRAMS, PROXY, REDIS, TWEMPROXY, VALKEY
from load import Result
from processes import Failed, cpu_clock
from redis_keys import value
from quiet import Sample, Watch, shares


def bench(**options):
    return Bench(rounds=2, seconds=1, is_quick=True, **options)


class Stand:
    """A server that only has costs."""

    def __init__(self, *costs):
        self.costs, self.spent = list(costs), 0.0

    def cpu(self):
        return self.spent, self.spent / 2

    def memory(self):
        return 1 << 20

    def serve(self):
        """A load of 1,000,000 reads, each for the next cost in microseconds; the last one stays."""
        self.spent += self.costs.pop(0) if len(self.costs) > 1 else self.costs[0]
        return Result(1_000_000, 1.0)


class Quietly(unittest.TestCase):
    def setUp(self):
        silence = contextlib.redirect_stderr(io.StringIO())
        silence.__enter__()
        self.addCleanup(silence.__exit__, None, None, None)


class Starting(Quietly):
    def stage(self, measurement):
        """A stage without a directory and a Redis."""
        stage = Stage.__new__(Stage)
        stage.bench, stage.keep = measurement, lambda server: server
        return stage

    def broken(self):
        raise Failed("memcached does not serve: no such option")

    def test_contestant_that_does_not_start_fails_the_run(self):
        measurement = bench()
        self.assertEqual(self.stage(measurement).started(MEMCACHED, self.broken), {})
        self.assertEqual(measurement.left_out, [("all cases", MEMCACHED, "memcached does not serve: no such option")])
        self.assertIn("WITHOUT='memcached' measures without them", run.verdict(measurement))

    def test_contestant_left_out_by_name_is_not_started(self):
        measurement = bench(without=frozenset(["memcached"]))
        self.assertEqual(self.stage(measurement).started(MEMCACHED, self.broken), {})
        self.assertEqual(measurement.left_out, [("all cases", MEMCACHED, "left out by name")])
        self.assertEqual(run.verdict(measurement), 0)

    def test_failed_read_of_a_contestant_is_listed_only(self):
        measurement = bench()
        measurement.leave_out("http 1 MiB", NGINX_FIXED, Failed("2 of 580 reads failed"))
        self.assertEqual(run.verdict(measurement), 0)

    def test_failure_of_this_proxy_or_the_limit_fails_the_run(self):
        for name in (PROXY, LIMIT, REDIS, "what is missing of this case"):
            measurement = bench()
            measurement.leave_out("http 1 MiB", name, Failed("it is gone"))
            self.assertIn(name, run.verdict(measurement))

    def test_program_that_cannot_be_had_ends_the_run_early(self):
        with mock.patch.object(install, "install"), mock.patch.object(run, "build") as build:
            with mock.patch.object(install, "is_there", lambda name: name != "nginx"):
                with self.assertRaisesRegex(SystemExit, "nginx .*WITHOUT='nginx'"):
                    run.prepare(["http"], set())
                build.assert_not_called()
                run.prepare(["http"], {"nginx"})
                run.prepare(["resp"], set())
                self.assertEqual(build.call_count, 2)

    def test_unknown_name_in_without_is_an_error(self):
        self.assertEqual(install.without("nginx, webdis"), {"nginx", "webdis"})
        with self.assertRaisesRegex(SystemExit, "there is no apache"):
            install.without("apache")

    def test_names_are_those_of_contestants_and_cases(self):
        self.assertEqual(set(install.NAMES), set(PROGRAMS.values()))
        self.assertLessEqual(set(NEEDS), set(CASES))
        self.assertLessEqual({name for names in NEEDS.values() for name in names}, set(install.NAMES))

    def test_valkey_takes_part_where_it_is_named(self):
        with mock.patch.dict(os.environ, {"VALKEY_SERVER": "/opt/valkey", "PATH": ""}):
            self.assertEqual(contestants.valkey_server(), "/opt/valkey")
        with mock.patch.dict(os.environ, {"VALKEY_SERVER": "", "PATH": ""}):
            measurement = bench()
            self.assertEqual(self.stage(measurement).valkey(range(1)), {})
            self.assertEqual(run.verdict(measurement), 0)
            self.assertEqual(measurement.left_out[0][1], VALKEY)

    def test_nginx_counts_only_with_all_its_modules(self):
        with tempfile.TemporaryDirectory() as directory, mock.patch.object(install, "ROOT", Path(directory)) as root:
            for file in ["usr/sbin/nginx", *install.NGINX_FILES]:
                self.assertFalse(install.is_there("nginx"), file)
                (root / file).parent.mkdir(parents=True, exist_ok=True)
                (root / file).touch()
            for loads in (True, False):
                with mock.patch.object(install, "nginx_loads", lambda: loads):
                    self.assertIs(install.is_there("nginx"), loads)


class Repeating(Quietly):
    def test_case_is_repeated_until_two_runs_agree(self):
        measurement = bench(runs=5)
        even, disturbed = Stand(10), Stand(30, 30, 12)
        measurement.take_turns("case", {PROXY: (even, even.serve), REDIS: (disturbed, disturbed.serve)})
        self.assertEqual({record.round for record in measurement.records}, {2, 3, 4, 5})
        self.assertRegex(measurement.agreements["case"], "Runs 2 and 3 of 3 agree within 0.0%")

    def test_runs_that_never_agree_are_bounded_and_all_kept(self):
        measurement = bench(runs=3)
        even, restless = Stand(10), Stand(10, 10, 20, 20, 40, 40)
        measurement.take_turns("case", {PROXY: (even, even.serve), REDIS: (restless, restless.serve)})
        self.assertEqual(len({record.round for record in measurement.records}), 6)
        self.assertRegex(measurement.agreements["case"], "No two of 3 runs agree within 5%")

    def test_disturbance_of_all_contestants_does_not_count(self):
        records = [Record("case", name, round_, {"cpu": cost * (1 + round_)}) for round_ in (0, 1) for name, cost in ((PROXY, 2), (REDIS, 3))]
        one, other = (runs.ratios([record for record in records if record.round == round_], "cpu") for round_ in (0, 1))
        self.assertEqual(runs.closest([one, other]), ((0, 1), 0.0))

    def test_run_without_a_cost_is_not_compared(self):
        self.assertIsNone(runs.difference({REDIS: 1.5}, {REDIS: 0.0}))
        self.assertEqual(runs.difference({REDIS: 0.0}, {REDIS: 2.0}), 1.0)

    def test_one_run_agrees_with_nothing(self):
        self.assertIsNone(runs.closest([{REDIS: 1.5}]))
        self.assertEqual(runs.sentence(1, None), "One run.")


class Loads(unittest.TestCase):
    def test_each_key_of_an_mget_is_a_read(self):
        with mock.patch.object(load, "run", lambda *_: "50 1000000 1 2 3"):
            self.assertEqual(load.closed(1, 1, read=100).reads, 5000)
            self.assertEqual(load.closed(1, 1).reads, 50)
            self.assertEqual(load.closed(1, 1, read=load.MG).reads, 50)

    def test_large_reads_count_by_their_bytes(self):
        text = "RESULT 3 450 1000000 0 1 2 3"
        self.assertEqual(load.wrk_result(PROXY, text).reads, 3)
        self.assertEqual(load.wrk_result(PROXY, text, 100).reads, 4.5)

    def test_values_of_different_keys_differ(self):
        self.assertEqual(value(7, 15), b"000000000007xxx")
        self.assertEqual({len(value(number, 5)) for number in range(3)}, {5})

    def test_proxy_has_room_for_large_values(self):
        for values in LARGE.values():
            settings = contestants.room_for(values.size, contestants.CAPACITY)
            if values.size <= contestants.KEPT_BY_DEFAULT:
                self.assertEqual(settings, {})
                continue
            self.assertGreaterEqual(int(settings["REDIS_PROXY_CACHE__MAX_MEMORY"]), 10 * values.size)
            self.assertGreaterEqual(int(settings["REDIS_PROXY_CACHE__MAX_IN_FLIGHT"]), values.connections * values.size)

    def test_proxy_has_room_for_many_keys(self):
        self.assertEqual(contestants.room_for(0, contestants.CAPACITY), {})
        # An entry of 100 bytes takes about 200.
        settings = contestants.room_for(100, 5_000_000)
        self.assertGreaterEqual(int(settings["REDIS_PROXY_CACHE__MAX_MEMORY"]), 300 * 5_000_000)


class Waiting:
    """A server with idle connections, which are numbers; the first request of each has another cost than the next."""

    def __init__(self, *costs):
        self.costs = costs
        self.server, self.asked, self.spent = self, [], 0.0

    def exact_cpu(self):
        return self.spent

    def ask(self, connections):
        for connection in connections:
            self.spent += self.costs[self.asked.count(connection)] / 1e6
            self.asked.append(connection)


class Idling(unittest.TestCase):
    def test_open_files_bound_the_connections(self):
        def counts(wanted, files):
            return [cases.idle_count(wanted, files, *how) for how in IDLE_KINDS.values()]

        self.assertEqual(counts(IDLE, 20_000), [10_000, 9_700, 10_000, 9_700])
        self.assertEqual(counts(IDLE, 65_536), [10_000] * 4)
        self.assertEqual(counts(MANY_IDLE, 65_536), [50_000, 32_400, 50_000, 32_400])
        self.assertEqual(counts(MANY_IDLE, 131_072), [50_000] * 4)
        self.assertEqual(counts(IDLE, 100), [100] * 4)

    def test_source_addresses_have_enough_ports(self):
        sources = [cases.source(number) for number in range(MANY_IDLE)]
        self.assertEqual(sources[0], "127.0.0.1")
        self.assertLess(max(sources.count(one) for one in set(sources)), 60_999 - 32_768)

    def test_first_and_next_request_take_turns(self):
        connections = range(6 * cases.PART)
        with mock.patch.object(cases, "BETWEEN", 2):
            kind = Waiting(9, 7.5)
            readings = cases.first_and_next(kind, connections)
        self.assertEqual([tuple(round(cost, 6) for cost in turn) for turn in readings], [(9, 7.5, 1.5)] * 4)
        begins = [connection // cases.PART for connection in kind.asked[:: cases.PART]]
        self.assertEqual(begins, [0, 1, 2, 0, 3, 1, 4, 2, 5, 3])

    def test_few_connections_have_readings(self):
        self.assertGreaterEqual(len(cases.first_and_next(Waiting(9, 8), range(100))), cases.BETWEEN)

    def test_clock_of_a_process_is_exact(self):
        before, ours = time.clock_gettime(cpu_clock(os.getpid())), time.process_time()
        self.assertLess(abs(before - ours), 0.1)
        self.assertGreater(time.clock_gettime(cpu_clock(os.getpid())), before)

    def test_both_front_ends_have_the_certificate(self):
        self.assertEqual(contestants.with_tls(None), {})
        settings = contestants.with_tls(Path("/bench/certificate.pem"))
        self.assertEqual(settings["REDIS_PROXY_HTTP__TLS_CERT_FILE"], "/bench/certificate.pem")
        self.assertEqual(settings["REDIS_PROXY_RESP__TLS_KEY_FILE"], "/bench/key.pem")


class Reporting(unittest.TestCase):
    def records(self, case, **costs):
        measurement = bench()
        for name, cost in costs.items():
            measurement.add(case, {"proxy": PROXY, "limit": LIMIT, "twemproxy": TWEMPROXY}[name], 0, cpu=cost)
        return measurement

    def test_table_has_multiples_of_the_limit_and_instructions(self):
        table = report.table(self.records("resp P=1, 32 connections", proxy=6.6, limit=6.0, twemproxy=12.0), "resp P=1, 32 connections")
        heads, _, proxy, limit, twemproxy = ([cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines())
        self.assertEqual(heads, ["", "CPU, µs a read", "ratio", "x of the limit", "instructions"])
        self.assertEqual(proxy, [PROXY, "6.60", "", "1.10", f"{report.counts()['resp-1']:,}"])
        self.assertEqual(limit, [LIMIT, "6.00", "1.10", "1", ""])
        self.assertEqual(twemproxy, [TWEMPROXY, "12.00", "0.55", "2.00", ""])

    def test_every_target_of_the_limit_is_printed_beside_its_aim(self):
        text = report.targets(self.records(MISSES_RESP, proxy=17.4, twemproxy=11.7))
        self.assertIn("| RESP miss, 32 clients, CPU : twemproxy | 1.0 | 1.0 | 1.49 | missed |", text)
        for row in (
            "HTTP miss, CPU : webdis, one thread, no log",
            "reads/s of 256 readers where every read misses : straight over one link",
            "2 worker threads : 1, CPU of a hit, HTTP, both on one core",
            f"RESP hit, P=64, CPU : {LIMIT}",
            "idle connection, bytes: this proxy, RESP",
            "REST, one read by POST, CPU : `GET /keys/`",
            "REST, one read by POST, CPU : webdis, one thread, no log",
            "REST, pipeline of 50, CPU a read : bridge, one round trip a command",
        ):
            self.assertIn(f"| {row} |", text)

    def test_large_reads_and_idle_have_their_aims(self):
        text = report.targets(bench())
        for row, most in (
            ("MGET of 100 keys, CPU : redis-server", 0.5),
            ("RESP hit of 4 KiB, P=16, CPU : redis-server", 1.0),
            ("RESP hit of 100 MiB, P=1, CPU : redis-server", 1.05),
            ("HTTP hit of 1 MiB, CPU : nginx + lrucache", 1.05),
            ("HTTP hit of 100 MiB, CPU : nginx, a file, sendfile off", 1.05),
            (f"idle connection, bytes: {many_idle('this proxy, HTTP')}", 4096),
            *((f"first request after idleness, CPU beyond that of the next, µs: {name}", 1.0) for name in IDLE_KINDS),
        ):
            self.assertIn(f"| {row} | {most} | {most} | not measured |", text)

    def test_target_without_another_is_a_figure(self):
        measurement = bench()
        measurement.add("idle", "this proxy, HTTP", 0, connection=3438.0)
        self.assertIn("| idle connection, bytes: this proxy, HTTP | 4096 | 4096 | 3,438 | aim |", report.targets(measurement))

    def test_counted_reads_are_in_the_record(self):
        self.assertLessEqual(set(report.COUNTED.values()), set(report.counts()))


class Quiet(unittest.TestCase):
    def test_shares_are_of_the_time_between_two_readings(self):
        self.assertEqual(shares([0] * 8, [10, 0, 10, 60, 10, 0, 0, 10]), (0.2, 0.1))

    def test_machine_is_quiet_within_limits_only(self):
        watch = Watch(0)
        watch.samples = [Sample(0.01, 0, 0), Sample(0.02, 0, 1), Sample(0.9, 0, 2)]
        self.assertIn("It was quiet", watch.verdict(0.0))
        self.assertIn("**not quiet**", watch.verdict(0.02))
        watch.samples = [Sample(0.3, 0, 0)]
        self.assertIn("**not quiet**", watch.verdict(0.0))
        self.assertIn("others used 30.0%, 30.0% of the processors", watch.text())


if __name__ == "__main__":
    sys.dont_write_bytecode = True
    unittest.main()

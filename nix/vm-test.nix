# The example of the documentation on a machine: reads and their freshness, reload, restart and
# switch under load, metrics, secrets.
let
  password = "correct-horse-battery";
in
{
  name = "redis-proxy";

  nodes.machine =
    { lib, pkgs, ... }:
    {
      imports = [ ./template/redis-proxy.nix ];
      # Other systems to switch to: one change that a reload applies, one that needs a restart, and one of an address.
      specialisation = {
        reloaded.configuration.services.redis-proxy.settings.cache.capacity = lib.mkForce 9;
        restarted.configuration.services.redis-proxy.settings.daemon.drain_timeout = "9s";
        moved.configuration.services.redis-proxy.settings.http.listen = lib.mkForce "127.0.0.1:8081";
      };
      # On a real system a secrets manager puts it there.
      systemd.tmpfiles.rules = [
        "d /run/secrets 0700 root root -"
        "f /run/secrets/redis-password 0400 root root - ${password}"
      ];
      services.prometheus.globalConfig.scrape_interval = "1s";
      environment.systemPackages = [
        pkgs.curl
        pkgs.jq
        pkgs.redis
      ];
    };

  testScript = ''
    url = "http://127.0.0.1:8080"
    config = "/etc/redis-proxy/redis-proxy.toml"
    socket = "/run/redis-redis-proxy/redis.sock"


    def redis(command):
        login = "export REDISCLI_AUTH=$(cat /run/secrets/redis-password)"
        return machine.succeed(f"{login}; redis-cli -s {socket} {command}")


    def read(key):
        return machine.succeed(f"curl --silent --show-error --fail --include {url}/keys/{key}")


    def metric(name):
        return float(machine.succeed(f"curl --silent --fail {url}/metrics | grep '^{name} '").split()[1])


    def pid():
        return machine.succeed("systemctl show --property MainPID --value redis-proxy.service").strip()


    def start_load():
        # A read may come before the connection to Redis is up. curl then obeys the Retry-After of
        # that 503. It does not retry after a refused or a lost connection.
        curl = "curl --silent --show-error --max-time 20 --retry 5 --output /dev/null --write-out '%{http_code}\\n'"
        machine.succeed(
            "rm -f /run/load-is-over",
            f"(while test ! -e /run/load-is-over; do {curl} {url}/keys/greeting; done) < /dev/null > /run/load 2>&1 &",
        )


    def await_load():
        answered = int(machine.succeed("wc --lines < /run/load"))
        machine.wait_until_succeeds(f"test $(wc --lines < /run/load) -gt {answered + 5}")


    def end_load():
        await_load()
        machine.succeed("touch /run/load-is-over")
        machine.fail("grep --invert-match --line-regexp 200 /run/load")


    # Runs as the program of NixOS does after it has written the units of the other system.
    def change_unit(unit, text):
        machine.succeed(
            f"mkdir -p /run/systemd/system/{unit}.d",
            f"printf '{text}' > /run/systemd/system/{unit}.d/changed.conf",
            "systemctl daemon-reload",
        )


    machine.wait_for_unit("redis-proxy.socket")
    machine.wait_for_unit("redis-proxy.service")
    machine.wait_until_succeeds(f"curl --silent --fail {url}/readyz")
    reload_waits = "notify-reload" in machine.succeed("systemctl show --property Type redis-proxy.service")
    print("a reload waits for the daemon:", reload_waits)

    with subtest("the credential is what Redis lets the proxy in by"):
        assert "NOAUTH" in machine.succeed(f"redis-cli -s {socket} ping 2>&1 || true")
        assert "tracking" in machine.succeed(f"curl --silent --fail {url}/readyz")

    with subtest("a miss, then a hit"):
        redis("set greeting hello")
        first, second = read("greeting"), read("greeting")
        assert "fwd=miss" in first and first.endswith("hello"), first
        assert "redis-proxy; hit" in second and second.endswith("hello"), second

    with subtest("a write by another is seen by the next read"):
        redis("set greeting bonjour")
        changed = read("greeting")
        assert "fwd=miss" in changed and changed.endswith("bonjour"), changed

    with subtest("a reload keeps the process and puts the new capacity in force"):
        before = pid()
        assert metric("redis_proxy_cache_capacity_entries") == 50000
        machine.succeed(f"sed 's/capacity = 50000/capacity = 7/' {config} > /run/changed.toml")
        machine.succeed(f"rm {config} && cp /run/changed.toml {config}")
        machine.succeed("systemctl reload redis-proxy.service")
        await_metric = machine.succeed if reload_waits else machine.wait_until_succeeds
        await_metric(f"curl --silent {url}/metrics | grep -x 'redis_proxy_cache_capacity_entries 7'")
        assert pid() == before
        assert read("greeting").endswith("bonjour")

    with subtest("a reload with a wrong file changes nothing"):
        machine.succeed(f"echo nonsense > {config}")
        machine.succeed("systemctl reload redis-proxy.service")
        machine.wait_until_succeeds("journalctl --unit redis-proxy.service | grep 'config refused'")
        assert pid() == before
        assert metric("redis_proxy_cache_capacity_entries") == 7
        assert read("greeting").endswith("bonjour")
        machine.succeed(f"cp /run/changed.toml {config}")

    with subtest("the socket starts the proxy"):
        machine.succeed("systemctl stop redis-proxy.service")
        machine.succeed("systemctl is-active redis-proxy.socket")
        machine.succeed(f"curl --silent --fail {url}/livez")
        machine.wait_for_unit("redis-proxy.service")
        assert pid() != before

    with subtest("a restart of a changed unit rejects no connection"):
        before = pid()
        start_load()
        for attempt in range(3):
            change_unit("redis-proxy.service", f"[Service]\\nEnvironment=ATTEMPT={attempt}\\n")
            machine.succeed("systemctl restart redis-proxy.service")
            await_load()
        end_load()
        assert pid() != before

    with subtest("a changed address is opened by systemd"):
        change_unit("redis-proxy.socket", "[Socket]\\nListenStream=\\nListenStream=127.0.0.1:8081\\n")
        machine.succeed("systemctl reload redis-proxy-sockets.service")
        machine.succeed("curl --silent --fail http://127.0.0.1:8081/livez")
        machine.fail(f"curl --silent --fail {url}/livez")
        machine.succeed("systemctl stop redis-proxy.service")
        machine.succeed("curl --silent --fail http://127.0.0.1:8081/livez")
        change_unit("redis-proxy.socket", "")
        machine.succeed("systemctl reload redis-proxy-sockets.service")
        machine.succeed(f"curl --silent --fail {url}/livez")

    with subtest("Prometheus has the metrics"):
        query = "curl --silent --get --data-urlencode 'query=up{job=\"redis-proxy\"} == 1' 127.0.0.1:9090/api/v1/query"
        machine.wait_until_succeeds(f"{query} | jq --exit-status '.data.result | length == 1'")
        query = query.replace("up{job=\"redis-proxy\"} == 1", "redis_proxy_cache_capacity_entries")
        machine.wait_until_succeeds(f"{query} | jq --exit-status '.data.result[0].value[1] == \"7\"'")

    with subtest("the password is nowhere to be read"):
        machine.succeed(
            "journalctl > /run/seen",
            "systemctl show redis-proxy.service >> /run/seen",
            f"cat {config} /proc/{pid()}/environ /proc/{pid()}/cmdline >> /run/seen",
            f"curl --silent {url}/metrics {url}/readyz >> /run/seen",
        )
        for part in ["config refused", "DynamicUser=yes", "capacity = 7", "INVOCATION_ID", "--config", "coherence"]:
            machine.succeed(f"grep --text --quiet -e '{part}' /run/seen")
        machine.fail("grep --text --fixed-strings ${password} /run/seen")
        secret = "/run/credentials/redis-proxy.service/redis-password"
        assert machine.succeed(f"cat {secret}").strip() == "${password}"
        assert "Permission denied" in machine.succeed(f"runuser -u nobody -- cat {secret} 2>&1 || true")

    with subtest("the unit is as confined as it is meant to be"):
        machine.succeed("systemd-analyze security --threshold=15 redis-proxy.service")

    # The rest needs the program of NixOS that switches.
    system = machine.execute("readlink -f /run/current-system")[1].strip()
    if machine.execute(f"test -e {system}/specialisation")[0] == 0:
        switch = system + "/specialisation/{}/bin/switch-to-configuration test"
        machine.succeed(
            "rm -r /run/systemd/system/redis-proxy.*.d",
            f"{system}/bin/switch-to-configuration test",
            "systemctl restart redis-proxy.service",
        )

        with subtest("a switch reloads the daemon for a setting that needs no more"):
            before = pid()
            machine.succeed(switch.format("reloaded"))
            assert metric("redis_proxy_cache_capacity_entries") == 9
            assert pid() == before

        with subtest("a switch that restarts the daemon rejects no connection"):
            start_load()
            machine.succeed(switch.format("restarted"))
            end_load()
            assert pid() != before

        with subtest("a switch opens a changed address"):
            machine.succeed(switch.format("moved"))
            machine.succeed("curl --silent --fail http://127.0.0.1:8081/livez")
            machine.fail(f"curl --silent --fail {url}/livez")
  '';
}

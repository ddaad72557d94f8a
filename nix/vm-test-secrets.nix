# Secrets in files that only root can read: tokens, passwords and private keys reach the daemon as
# credentials, and are rotated by a restart that rejects no connection.
{
  name = "redis-proxy-secrets";

  nodes.machine =
    { pkgs, ... }:
    let
      certificate = pkgs.runCommand "redis-proxy-certificate" { nativeBuildInputs = [ pkgs.openssl ]; } ''
        mkdir $out
        printf '[req]\ndistinguished_name=name\n[name]\n' > openssl.cnf
        openssl req -config openssl.cnf -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 36500 \
          -subj /CN=localhost -addext subjectAltName=DNS:localhost,IP:127.0.0.1 \
          -keyout $out/key.pem -out $out/cert.pem
      '';
    in
    {
      services.redis-proxy = {
        enable = true;
        socketActivation = true;
        http.tokensFile = "/run/secrets/tokens";
        http.tlsKeyFile = "/run/secrets/tls.key";
        resp.passwordFile = "/run/secrets/resp-password";
        resp.tlsKeyFile = "/run/secrets/tls.key";
        redis.createLocally = true;
        redis.passwordFile = "/run/secrets/redis-password";
        settings = {
          http.listen = "127.0.0.1:8443";
          http.tls_cert_file = "${certificate}/cert.pem";
          resp.listen = "127.0.0.1:6390";
          resp.tls_cert_file = "${certificate}/cert.pem";
          admin.listen = "127.0.0.1:9121";
        };
        monitoring.scrape = true;
      };
      services.prometheus.enable = true;
      services.prometheus.globalConfig.scrape_interval = "1s";
      environment.etc."test-ca.pem".source = "${certificate}/cert.pem";
      # On a real system a secrets manager puts them there, and no key is in the store.
      systemd.tmpfiles.rules = [
        "d /run/secrets 0700 root root -"
        "f /run/secrets/tokens 0400 root root - first-token"
        "f /run/secrets/resp-password 0400 root root - first-password"
        "f /run/secrets/redis-password 0400 root root - redis-password"
        "C /run/secrets/tls.key 0400 root root - ${certificate}/key.pem"
      ];
      environment.systemPackages = [
        pkgs.curl
        pkgs.jq
        pkgs.redis
      ];
    };

  testScript = ''
    url = "https://127.0.0.1:8443"
    curl = "curl --silent --show-error --cacert /etc/test-ca.pem"


    def status(token):
        code = f"{curl} --output /dev/null --write-out '%{{http_code}}'"
        return machine.succeed(f"{code} --header 'Authorization: Bearer {token}' {url}/keys/greeting").strip()


    def ping(password):
        tls = "--tls --cacert /etc/test-ca.pem"
        return machine.succeed(f"REDISCLI_AUTH={password} redis-cli -p 6390 {tls} ping 2>&1 || true")


    machine.wait_for_unit("redis-proxy.service")
    machine.wait_until_succeeds("curl --silent --fail http://127.0.0.1:9121/readyz")

    with subtest("secrets that only root can read serve a daemon without a user of its own"):
        modes = machine.succeed("stat --format '%a %U' /run/secrets/*").split("\n")
        assert set(modes) == {"400 root", ""}, modes
        assert "DynamicUser=yes" in machine.succeed("systemctl show --property DynamicUser redis-proxy.service")
        machine.succeed(
            "REDISCLI_AUTH=redis-password redis-cli -s /run/redis-redis-proxy/redis.sock set greeting hello"
        )
        assert status("first-token") == "200"
        assert status("another-token") == "401"
        assert "PONG" in ping("first-password")
        assert "PONG" not in ping("another-password")

    with subtest("Prometheus collects from the listener that needs no token"):
        query = "curl --silent --get --data-urlencode 'query=up{job=\"redis-proxy\"} == 1' 127.0.0.1:9090/api/v1/query"
        machine.wait_until_succeeds(f"{query} | jq --exit-status '.data.result | length == 1'")

    with subtest("a reload keeps the secrets of the start"):
        machine.succeed("echo second-token > /run/secrets/tokens", "echo second-password > /run/secrets/resp-password")
        machine.succeed("systemctl reload redis-proxy.service")
        count = "redis_proxy_config_reloads_total{result=\"success\"} 1"
        machine.wait_until_succeeds(f"curl --silent http://127.0.0.1:9121/metrics | grep -x '{count}'")
        assert status("first-token") == "200"
        assert status("second-token") == "401"

    with subtest("a restart rotates the secrets and rejects no connection"):
        # A request without a token has an answer before and after.
        load = f"{curl} --max-time 20 --output /dev/null --write-out '%{{http_code}}\\n' {url}/keys/greeting"
        machine.succeed(f"(while test ! -e /run/load-is-over; do {load}; done) < /dev/null > /run/load 2>&1 &")
        machine.wait_until_succeeds("test $(wc --lines < /run/load) -gt 2")
        machine.succeed("systemctl restart redis-proxy.service")
        answered = int(machine.succeed("wc --lines < /run/load"))
        machine.wait_until_succeeds(f"test $(wc --lines < /run/load) -gt {answered + 5}")
        machine.succeed("touch /run/load-is-over")
        machine.fail("grep --invert-match --line-regexp 401 /run/load")
        machine.wait_until_succeeds("curl --silent --fail http://127.0.0.1:9121/readyz")
        assert status("first-token") == "401"
        assert status("second-token") == "200"
        assert "PONG" not in ping("first-password")
        assert "PONG" in ping("second-password")

    with subtest("no secret is readable by others"):
        machine.succeed(
            "journalctl > /run/seen",
            "systemctl show redis-proxy.service >> /run/seen",
            "cat /etc/redis-proxy/redis-proxy.toml >> /run/seen",
        )
        machine.fail("grep --text -E '(first|second)-(token|password)' /run/seen")
        machine.succeed("test $(ls /run/credentials/redis-proxy.service | wc --lines) = 5")
        for secret in machine.succeed("ls /run/credentials/redis-proxy.service").split():
            path = f"/run/credentials/redis-proxy.service/{secret}"
            assert "Permission denied" in machine.succeed(f"runuser -u nobody -- cat {path} 2>&1 || true")
  '';
}

# Configurations of the module that are valid, and others that are refused, each for its own reason.
#
# Every refused one is `minimal` with one thing wrong, and names the check that refuses it. The type
# of an option or an assertion of the module refuses it during the evaluation. The daemon's own
# check refuses it during the build.
{ pkgs, module }:

let
  inherit (pkgs) lib;

  # The keys of redis-proxy.toml that name a file with a secret, as [ section key ]. They are found
  # by their names, so a new one that the module does not declare as a secret fails here.
  secretKeys =
    let
      isSecret = key: builtins.match "(.*_)?(key|password|tokens?|secret)_file" key != null;
      of = section: keys: map (key: [ section key ]) (lib.filter isSecret (lib.attrNames keys));
    in
    lib.concatLists (lib.mapAttrsToList of (lib.importTOML ../redis-proxy.toml));

  minimal.services.redis-proxy.enable = true;
  with' = more: lib.recursiveUpdate minimal { services.redis-proxy = more; };

  good = {
    inherit minimal;

    readme = ./example.nix;

    remote = with' {
      openFirewall = true;
      redis.passwordFile = "/run/secrets/redis-password";
      redis.tlsKeyFile = "/run/secrets/redis-client.key";
      settings = {
        http.listen = "0.0.0.0:8080";
        # The firewall decides which hosts reach it.
        http.allow_unprotected = true;
        http.max_value = "8MiB";
        admin.listen = "127.0.0.1:9121";
        redis.url = "rediss://proxy@cache.internal:6380/0";
        redis.tls_cert_file = "/etc/ssl/redis-client.pem";
        cache.ttl = 90;
        cache.stale_if_error = "10m";
        daemon.drain_timeout = "15s";
      };
    };

    secrets-outside-of-the-store = with' {
      settings = lib.foldl' lib.recursiveUpdate {
        http.tls_cert_file = "/etc/ssl/http.pem";
        resp.listen = "127.0.0.1:6380";
        resp.tls_cert_file = "/etc/ssl/resp.pem";
        redis.mode = "sentinel";
        redis.seeds = "rediss://127.0.0.1:26379";
        redis.sentinel_master = "mymaster";
        redis.url = "rediss://cache.internal";
        redis.tls_cert_file = "/etc/ssl/redis-client.pem";
      } (map (path: lib.setAttrByPath path "/run/secrets/${lib.last path}") secretKeys);
    };

    port-of-systemd = with' {
      socketActivation = true;
      openFirewall = true;
      settings.http.listen = "[::]:80";
      settings.http.allow_unprotected = true;
      settings.admin.listen = "[::1]:9121";
    };
  }
  # The files belong to the dashboards.
  // lib.optionalAttrs (builtins.pathExists ../dashboards/alerts.yml) {
    monitored =
      lib.recursiveUpdate
        (with' {
          monitoring = {
            scrape = true;
            alerts = true;
            dashboard = true;
          };
        })
        {
          services.prometheus.enable = true;
          services.grafana = {
            enable = true;
            # Grafana has no default for it.
            settings.security.secret_key = "$__file{/run/secrets/grafana-key}";
          };
        };
  };

  refused = {
    # option: its type refuses the value.
    wrong-type = {
      case.openFirewall = "yes";
      option = [ "openFirewall" ];
      message = "boolean";
    };
    password-file-in-the-store = {
      case.redis.passwordFile = "${builtins.storeDir}/00000000000000000000000000000000-password";
      option = [
        "redis"
        "passwordFile"
      ];
      message = "not in the Nix store";
    };
    tls-key-in-the-store = {
      case.redis.tlsKeyFile = ./example.nix;
      option = [
        "redis"
        "tlsKeyFile"
      ];
      message = "not in the Nix store";
    };
    null-in-settings = {
      case.settings = null;
      option = [ "settings" ];
      message = "submodule";
    };

    # unknown: there is no such option.
    unknown-option = {
      case.ttl = "60s";
      unknown = [ "ttl" ];
    };

    # assertion: a part of the module's message.
    password-in-settings = {
      case.settings.redis.password = "hunter2";
      assertion = "settings.redis.password would be readable by everyone";
    };
    password-in-url = {
      case.settings.redis.url = "redis://proxy:hunter2@cache.internal:6379/0";
      assertion = "settings.redis.url holds a password";
    };
    two-password-files = {
      case = {
        redis.passwordFile = "/run/secrets/one";
        settings.redis.password_file = "/run/secrets/other";
      };
      assertion = "are both set";
    };
    privileged-port = {
      case.settings.http.listen = "0.0.0.0:80";
      assertion = "listens on a port below 1024";
    };
    name-for-systemd = {
      case = {
        socketActivation = true;
        settings.http.listen = "localhost:8080";
      };
      assertion = "found localhost";
    };
    firewall-for-loopback = {
      case.openFirewall = true;
      assertion = "opens a port that nobody outside can reach";
    };
    scrape-without-prometheus = {
      case.monitoring.scrape = true;
      assertion = "for the Prometheus of this machine, and there is none";
    };
    dashboard-without-grafana = {
      case.monitoring.dashboard = true;
      assertion = "for the Grafana of this machine, and there is none";
    };

    # daemon: a part of the daemon's message.
    bad-duration = {
      case.settings.cache.ttl = "five minutes";
      daemon = ''cache.ttl: found string "five minutes", expected a duration'';
    };
    bad-address = {
      case.settings.http.listen = "8080";
      daemon = "http.listen: found string \"8080\", expected host:port";
    };
    unknown-key = {
      case.settings.cache.capacty = 5;
      daemon = "cache.capacty: unknown key; did you mean cache.capacity?";
    };
    unknown-section = {
      case.settings.listener.port = 8080;
      daemon = "listener.port: unknown key; the sections are";
    };
    nothing-to-keep = {
      case.settings.cache.capacity = 0;
      daemon = "cache.capacity: found 0, expected at least 1";
    };
    strangers-let-in = {
      case.settings.http.listen = "0.0.0.0:8080";
      daemon = "http.allow_unprotected: listener 0.0.0.0:8080 is reachable from other hosts";
    };
    one-address-for-two = {
      case.settings.admin.listen = "127.0.0.1:8080";
      daemon = "admin.listen: the same as http.listen";
    };
    key-without-certificate = {
      case = {
        redis.tlsKeyFile = "/run/secrets/redis-client.key";
        settings.redis.url = "rediss://cache.internal";
      };
      daemon = "redis.tls_cert_file: found one of the two";
    };
  };

  # Each secret key with a path literal, with a string that is a copy in the store, and with a store
  # path as plain text.
  secretsInStore = lib.listToAttrs (
    lib.concatMap (
      path:
      lib.mapAttrsToList
        (
          kind: value:
          lib.nameValuePair "${lib.concatStringsSep "." path}-${kind}" (
            with' { settings = lib.setAttrByPath path value; }
          )
        )
        {
          literal = ./example.nix;
          copy = "${./example.nix}";
          text = "${builtins.storeDir}/00000000000000000000000000000000-secret";
          relative = "secret";
        }
    ) secretKeys
  );

  evaluate =
    case:
    pkgs.nixos {
      imports = [
        module
        case
      ];
      # No disks and no boot loader.
      boot.isContainer = true;
      system.stateVersion = lib.trivial.release;
    };

  complaints =
    system: map (one: one.message) (lib.filter (one: !one.assertion) system.options.assertions.value);
  check = system: system.config.environment.etc."redis-proxy/redis-proxy.toml".source;
  evaluates = system: (builtins.tryEval system.config.system.build.toplevel.drvPath).success;

  verdict =
    name: expected:
    let
      system = evaluate (with' expected.case);
      options = system.options.services.redis-proxy;
      option = lib.getAttrFromPath expected.option options;
      value = lib.getAttrFromPath expected.option expected.case;
      said = lib.concatStrings (complaints system);
      right =
        if expected ? option then
          !(option.type.check value)
          && lib.hasInfix expected.message option.type.description
          && !(evaluates system)
        else if expected ? unknown then
          # The options of a configuration without it: those of one with it throw, as its other
          # values do.
          !(lib.hasAttrByPath expected.unknown (evaluate minimal).options.services.redis-proxy)
          && !(evaluates system)
        else if expected ? assertion then
          lib.length (complaints system) == 1 && lib.hasInfix expected.assertion said && !(evaluates system)
        else
          said == "";
    in
    lib.assertMsg right "the case ${name} is not refused as expected; it says: ${said}";

  accepted =
    name: case:
    let
      system = evaluate case;
      said = lib.concatStrings (complaints system);
    in
    lib.assertMsg (said == "") "the case ${name} is refused: ${said}"
    && lib.isString system.config.system.build.toplevel.drvPath;

  # `secrets-outside-of-the-store` is accepted with all these keys, so only the value is refused
  # here.
  outside =
    name: case:
    lib.assertMsg (!(evaluates (evaluate case))) "the module takes the secret ${name} into the store";

  tryDaemon =
    name: expected:
    let
      file = check (evaluate (with' expected.case));
      # A separate process, because `set -e` has no effect in a condition.
      command = pkgs.writeText "check-${name}" file.buildCommand;
    in
    ''
      echo ${lib.escapeShellArg name}
      mkdir ${name}
      cd ${name}
      if out=$PWD/out bash -e ${command} 2> log; then
        echo "the daemon takes it"
        exit 1
      fi
      cat log
      grep -qF ${lib.escapeShellArg expected.daemon} log
      cd ..
    '';
in
assert lib.all lib.id (lib.mapAttrsToList accepted good);
assert lib.all lib.id (lib.mapAttrsToList verdict refused);
assert lib.assertMsg (secretKeys != [ ]) "no key of redis-proxy.toml names a file with a secret";
assert lib.all lib.id (lib.mapAttrsToList outside secretsInStore);
pkgs.runCommand "redis-proxy-module-cases"
  {
    # The daemon accepts them, otherwise there would be none.
    goodFiles = map (case: check (evaluate case)) (lib.attrValues good);
    passthru = lib.mapAttrs (_: expected: evaluate (with' expected.case)) refused;
  }
  ''
    ${lib.concatStrings (
      lib.mapAttrsToList tryDaemon (lib.filterAttrs (_: expected: expected ? daemon) refused)
    )}
    touch $out
  ''

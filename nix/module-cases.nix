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
      of =
        section: keys:
        map (key: [
          section
          key
        ]) (lib.filter isSecret (lib.attrNames keys));
    in
    lib.concatLists (lib.mapAttrsToList of (lib.importTOML ../redis-proxy.toml));

  # The option that passes the file of a secret key as a credential: tls_key_file is tlsKeyFile.
  optionOf =
    path:
    let
      words = lib.splitString "_" (lib.last path);
      capitalize = word: lib.toUpper (lib.substring 0 1 word) + lib.substring 1 (-1) word;
    in
    [
      (lib.head path)
      (lib.concatStrings ([ (lib.head words) ] ++ map capitalize (lib.tail words)))
    ];

  minimal.services.redis-proxy.enable = true;
  with' = more: lib.recursiveUpdate minimal { services.redis-proxy = more; };

  # A file for every secret key, by the key itself or by its option.
  secretsAt =
    pathOf: folder:
    lib.foldl' lib.recursiveUpdate { } (
      map (path: lib.setAttrByPath (pathOf path) "${folder}/${lib.concatStringsSep "-" path}") secretKeys
    );

  # The settings that the secrets belong to.
  protected = {
    http.tls_cert_file = "/etc/ssl/http.pem";
    resp.listen = "127.0.0.1:6380";
    resp.tls_cert_file = "/etc/ssl/resp.pem";
    redis.mode = "sentinel";
    redis.seeds = "rediss://127.0.0.1:26379";
    redis.sentinel_master = "mymaster";
    redis.url = "rediss://cache.internal";
    redis.tls_cert_file = "/etc/ssl/redis-client.pem";
    rest.listen = "127.0.0.1:8079";
    rest.tls_cert_file = "/etc/ssl/rest.pem";
    rest.redis_username = "rest";
  };

  good = {
    inherit minimal;

    readme = ./template/redis-proxy.nix;

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
      settings = lib.recursiveUpdate protected (secretsAt lib.id "/run/secrets");
    };

    secrets-as-credentials =
      lib.recursiveUpdate (with' ({ settings = protected; } // secretsAt optionOf "/run/secrets"))
        {
          services.redis-proxy.settings.admin.listen = "127.0.0.1:9121";
          services.redis-proxy.monitoring.scrape = true;
          services.prometheus.enable = true;
        };

    imported-twice = {
      imports = [
        module
        minimal
      ];
    };

    another-database = with' {
      redis.createLocally = true;
      settings.redis.url = "unix:///run/redis-redis-proxy/redis.sock?db=2";
    };

    firewall-for-redis-clients = with' {
      openFirewall = true;
      resp.passwordFile = "/run/secrets/resp-password";
      settings.resp.listen = "0.0.0.0:6380";
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
      case.redis.tlsKeyFile = ./template/redis-proxy.nix;
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
      assertion = "opens no port, as other hosts reach none";
    };
    scrape-without-prometheus = {
      case.monitoring.scrape = true;
      assertion = "for the Prometheus of this machine, and there is none";
    };
    scrape-without-token = {
      case.monitoring.scrape = true;
      case.http.tokensFile = "/run/secrets/tokens";
      beside.services.prometheus.enable = true;
      assertion = "scrape needs settings.admin.listen";
    };
    scrape-without-tls = {
      case.monitoring.scrape = true;
      case.http.tlsKeyFile = "/run/secrets/http.key";
      case.settings.http.tls_cert_file = "/etc/ssl/http.pem";
      beside.services.prometheus.enable = true;
      assertion = "scrape needs settings.admin.listen";
    };
    own-redis-without-socket = {
      case.redis.createLocally = true;
      beside.services.redis.servers.redis-proxy.unixSocket = null;
      assertion = "createLocally needs the unix socket of that Redis";
    };
    own-redis-beside-another = {
      case.redis.createLocally = true;
      case.settings.redis.url = "redis://cache.internal:6379/0";
      assertion = "runs a Redis that services.redis-proxy.settings.redis.url does not\nname";
    };
    alerts-without-prometheus = {
      case.monitoring.alerts = true;
      assertion = "for the Prometheus of this machine, and there is none";
    };
    dashboard-without-grafana = {
      case.monitoring.dashboard = true;
      assertion = "for the Grafana of this machine, and there is none";
    };
    dashboard-beside-a-path = {
      case.monitoring.dashboard = true;
      beside.services.grafana = {
        enable = true;
        settings.security.secret_key = "$__file{/run/secrets/grafana-key}";
        provision.enable = true;
        provision.dashboards.path = "/etc/dashboards";
      };
      assertion = "does not take together with services.grafana.provision.dashboards.path";
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
  }
  # Each secret by its key and by its option. The module would leave one of them out.
  // lib.listToAttrs (
    map (
      path:
      lib.nameValuePair "two-files-for-${lib.concatStringsSep "-" path}" {
        case = lib.recursiveUpdate (lib.setAttrByPath (optionOf path) "/run/secrets/one") {
          settings = lib.setAttrByPath path "/run/secrets/other";
        };
        assertion = "are both set, and the second would win";
      }
    ) secretKeys
  );

  # Each secret key, and its option, with a path literal, with a string that is a copy in the store,
  # and with a store path as plain text.
  secretsInStore = lib.listToAttrs (
    lib.concatMap (
      path:
      lib.mapAttrsToList
        (
          kind: value:
          lib.nameValuePair "${lib.showOption path}-${kind}" (with' (lib.setAttrByPath path value))
        )
        {
          literal = ./template/redis-proxy.nix;
          copy = "${./template/redis-proxy.nix}";
          text = "${builtins.storeDir}/00000000000000000000000000000000-secret";
          relative = "secret";
        }
    ) (map optionOf secretKeys ++ map (path: [ "settings" ] ++ path) secretKeys)
  );

  evaluate = evaluateWith pkgs;
  evaluateWith =
    pkgs: case:
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
      system = evaluate (lib.recursiveUpdate (with' expected.case) (expected.beside or { }));
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

  # `secrets-outside-of-the-store` and `secrets-as-credentials` are accepted with all these keys and
  # options, so only the value is refused here.
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

  facts =
    let
      ports = case: (evaluate case).config.networking.firewall.allowedTCPPorts;
      credentials = (evaluate good.secrets-as-credentials).config.services.redis-proxy.settings;
      loaded =
        (evaluate good.secrets-as-credentials)
        .config.systemd.services.redis-proxy.serviceConfig.LoadCredential;
      documented = lib.filter (
        option: lib.hasPrefix "services.redis-proxy." option.name && !(option.internal or false)
      ) (lib.optionAttrSetToDocList (evaluate minimal).options);
      # A system that the flake does not list.
      foreign = import pkgs.path { system = "riscv64-linux"; };
      packageThere = (evaluateWith foreign minimal).config.services.redis-proxy.package;
      units =
        listen:
        (evaluate (with' {
          settings.http.listen = listen;
          socketActivation = true;
        })).config.systemd;
      addresses = listen: (units listen).services.redis-proxy-sockets.reloadTriggers;
    in
    {
      "every secret reaches the daemon as a credential" = lib.all (
        path:
        let
          file = lib.getAttrFromPath path credentials;
          credential = baseNameOf file;
        in
        file == "/run/credentials/redis-proxy.service/${credential}"
        && lib.elem "${credential}:/run/secrets/${lib.concatStringsSep "-" path}" loaded
      ) secretKeys;
      "the firewall opens the port of HTTP" = ports good.remote == [ 8080 ];
      "the firewall opens the port of Redis clients" = ports good.firewall-for-redis-clients == [ 6380 ];
      "the package is built for the machine's system" =
        lib.isString packageThere.drvPath
        && packageThere.stdenv.hostPlatform.system == foreign.stdenv.hostPlatform.system;
      "every option has a description and a default" = lib.all (
        option:
        !(lib.elem (option.description or null) [
          null
          ""
        ])
        && option ? default
      ) documented;
      "a switch restarts the service and leaves its sockets open" =
        !(units "127.0.0.1:8080").services.redis-proxy.stopIfChanged;
      "a switch opens a changed address" = addresses "127.0.0.1:8080" != addresses "127.0.0.1:8081";
      "a switch leaves an unchanged address" = addresses "127.0.0.1:8080" == addresses "127.0.0.1:8080";
    };
in
assert lib.all lib.id (
  lib.mapAttrsToList (fact: isTrue: lib.assertMsg isTrue "not so: ${fact}") facts
);
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

# The service redis-proxy. Its units match those in systemd/; a check compares them.
#
# The rule that must not be broken: no secret enters the store. A configuration that the daemon
# would refuse is refused when the system is built.
#
# nix/nixpkgs copies this file for nixpkgs, so it refers to no other file of the project.
{
  config,
  lib,
  pkgs,
  ...
}:

let
  inherit (lib) types;
  cfg = config.services.redis-proxy;
  format = pkgs.formats.toml { };
  file = "redis-proxy/redis-proxy.toml";
  credentials = "/run/credentials/redis-proxy.service";
  # An older systemd ignores the type, and would count the daemon as started before it listens.
  hasNotifyReload = lib.versionAtLeast config.systemd.package.version "253";

  # A secret that systemd passes to the daemon: an option of this module, and the key of the
  # configuration that names its file.
  secret = section: option: key: rec {
    inherit section option key;
    file = cfg.${section}.${option};
    credential = "${section}-${lib.replaceStrings [ "_" ] [ "-" ] (lib.removeSuffix "_file" key)}";
    path = "${credentials}/${credential}";
  };
  secrets = lib.filter (secret: secret.file != null) [
    (secret "http" "tokensFile" "tokens_file")
    (secret "http" "tlsKeyFile" "tls_key_file")
    (secret "rest" "tokensFile" "tokens_file")
    (secret "rest" "tlsKeyFile" "tls_key_file")
    (secret "rest" "redisPasswordFile" "redis_password_file")
    (secret "resp" "passwordFile" "password_file")
    (secret "resp" "tlsKeyFile" "tls_key_file")
    (secret "redis" "passwordFile" "password_file")
    (secret "redis" "sentinelPasswordFile" "sentinel_password_file")
    (secret "redis" "tlsKeyFile" "tls_key_file")
  ];

  # A section of the configuration. Keys that are not declared here are checked by the daemon.
  section =
    description: options:
    lib.mkOption {
      inherit description;
      type = types.submodule {
        freeformType = format.type;
        inherit options;
      };
      default = { };
    };

  duration = types.either types.ints.unsigned types.str;

  # A file that holds a secret. The type refuses path literals and store paths: the generator of the
  # configuration copies a path literal into the store, where every user of the machine can read it.
  secretFile =
    description:
    lib.mkOption {
      inherit description;
      type = types.either (types.enum [ "" ]) types.externalPath;
      default = "";
      example = "/run/secrets/redis-proxy";
    };

  # A file that holds a secret, and that only root must be able to read.
  credentialFile =
    description:
    lib.mkOption {
      description = "${description} systemd passes it to the daemon as a credential. A change needs a restart.";
      type = types.nullOr types.externalPath;
      default = null;
      example = "/run/secrets/redis-proxy";
    };

  # The check opens no socket and reads no secret.
  checkedFile = pkgs.runCommand "redis-proxy.toml" { } ''
    install -m 444 ${format.generate "redis-proxy.toml" cfg.settings} redis-proxy.toml
    ${lib.optionalString (pkgs.stdenv.buildPlatform.canExecute pkgs.stdenv.hostPlatform) ''
      ${lib.getExe cfg.package} check --config redis-proxy.toml
    ''}
    cp redis-proxy.toml $out
  '';

  # The keys that SIGHUP applies; a check compares them with the keys marked "(live)" in
  # redis-proxy.toml. A change of any other key restarts the daemon, which would refuse to reload
  # it.
  liveKeys = {
    cache = [
      "capacity"
      "coherence_timeout"
      "hash_fields"
      "max_in_flight"
      "max_memory"
      "max_reply"
      "max_reply_memory"
      "negative_ttl"
      "policy"
      "refresh_rate"
      "reply_share"
      "rules"
      "stale_if_error"
      "ttl"
    ];
    telemetry = [ "log_filter" ];
    verify = [
      "max_rate"
      "on_stale"
      "sample"
    ];
  };
  settingsOfStart = lib.filterAttrs (_: keys: keys != { }) (
    lib.mapAttrs (
      name: keys: if lib.isAttrs keys then removeAttrs keys (liveKeys.${name} or [ ]) else keys
    ) cfg.settings
  );

  # host:port; the daemon reports anything else.
  parse =
    listen:
    let
      parts = builtins.match "(.*):([0-9]{1,5})" listen;
    in
    {
      host = if parts == null then "" else lib.head parts;
      port = if parts == null then null else lib.toIntBase10 (lib.last parts);
    };
  http = parse cfg.settings.http.listen;
  admin = parse cfg.settings.admin.listen;
  resp = parse cfg.settings.resp.listen;
  rest = parse cfg.settings.rest.listen;
  hasAdmin = cfg.settings.admin.listen != "";
  hasRest = cfg.settings.rest.listen != "";
  # The daemon creates a unix socket itself.
  hasResp = cfg.settings.resp.listen != "" && !lib.hasPrefix "unix:" cfg.settings.resp.listen;
  isHttpProtected =
    cfg.settings.http.tokens_file != "" || (cfg.settings.http.tls_cert_file or "") != "";
  others = lib.optional hasAdmin admin ++ lib.optional hasResp resp ++ lib.optional hasRest rest;
  listeners = [ http ] ++ others;

  isLoopback = host: host == "localhost" || host == "[::1]" || lib.hasPrefix "127." host;
  isAddress = host: builtins.match "[0-9.]+|\\[[0-9a-fA-F:.]+]" host != null;
  openPorts = map (listener: listener.port) (
    lib.filter (listener: listener.port != null && !isLoopback listener.host) (
      [ http ] ++ lib.optional hasResp resp ++ lib.optional hasRest rest
    )
  );
  isPrivileged = listener: listener.port != null && 0 < listener.port && listener.port < 1024;
  reachable =
    { host, port }:
    let
      own = {
        "0.0.0.0" = "127.0.0.1";
        "[::]" = "[::1]";
      };
    in
    "${own.${host} or host}:${toString port}";

  # The Redis of createLocally.
  ownSocket = config.services.redis.servers.redis-proxy.unixSocket;
  ownUrl = "unix://${toString ownSocket}";

  socketUnit = name: listen: {
    description = "Caching proxy for Redis (${lib.toUpper name})";
    wantedBy = [ "sockets.target" ];
    listenStreams = [ listen ];
    socketConfig = {
      Service = "redis-proxy.service";
      FileDescriptorName = name;
      NoDelay = true;
      Backlog = 4096;
    };
  };
  sockets =
    lib.optional cfg.socketActivation "redis-proxy.socket"
    ++ lib.optional (cfg.socketActivation && hasAdmin) "redis-proxy-admin.socket"
    ++ lib.optional (cfg.socketActivation && hasResp) "redis-proxy-resp.socket"
    ++ lib.optional (cfg.socketActivation && hasRest) "redis-proxy-rest.socket";
in
{
  # nixpkgs lists its maintainers in lib.maintainers.
  meta.maintainers = [
    {
      name = "The redis-proxy maintainers";
      email = "maintainers@redis-proxy.invalid";
    }
  ];

  options.services.redis-proxy = {
    enable = lib.mkEnableOption "redis-proxy, a caching proxy for Redis that serves HTTP and Redis clients";

    package = lib.mkPackageOption pkgs "redis-proxy" { };

    settings = lib.mkOption {
      type = types.submodule {
        freeformType = format.type;
        options = {
          http = section "The listener for reads over HTTP." {
            listen = lib.mkOption {
              type = types.str;
              default = "127.0.0.1:8080";
              example = "0.0.0.0:8080";
              description = ''
                The address of the HTTP listener, as host and port. If other hosts can reach it, the daemon starts
                only with authentication (`http.tokens_file`, `http.tls_client_ca_file`) or with
                `http.allow_unprotected = true`.
              '';
            };
            tls_key_file = secretFile ''
              The private key (PEM) of `http.tls_cert_file`, outside of the Nix store. The daemon must be able to read
              the file, which {option}`services.redis-proxy.http.tlsKeyFile` does not require.
            '';
            tokens_file = secretFile ''
              The bearer tokens for reads over HTTP, outside of the Nix store. The daemon must be able to read the file,
              which {option}`services.redis-proxy.http.tokensFile` does not require.
            '';
          };
          rest = section "Commands by the REST contract of Upstash." {
            listen = lib.mkOption {
              type = types.str;
              default = "";
              example = "127.0.0.1:8079";
              description = ''
                The address of a listener with the contract at `/`, as host and port. Empty disables the listener;
                `rest.path` serves the contract on that of `http`.
              '';
            };
            redis_password_file = secretFile ''
              The password of `rest.redis_username`, outside of the Nix store. The daemon must be able to read the file,
              which {option}`services.redis-proxy.rest.redisPasswordFile` does not require.
            '';
            tls_key_file = secretFile ''
              The private key (PEM) of `rest.tls_cert_file`, outside of the Nix store. The daemon must be able to read
              the file, which {option}`services.redis-proxy.rest.tlsKeyFile` does not require.
            '';
            tokens_file = secretFile ''
              The bearer tokens with their rights, outside of the Nix store. The daemon must be able to read the file,
              which {option}`services.redis-proxy.rest.tokensFile` does not require.
            '';
          };
          resp = section "The listener for Redis clients." {
            listen = lib.mkOption {
              type = types.str;
              default = "";
              example = "127.0.0.1:6380";
              description = ''
                The address for Redis clients, as host and port or `unix:///path`. Empty disables the listener.
              '';
            };
            password_file = secretFile ''
              The password for Redis clients, outside of the Nix store. The daemon must be able to read the file, which
              {option}`services.redis-proxy.resp.passwordFile` does not require.
            '';
            tls_key_file = secretFile ''
              The private key (PEM) of `resp.tls_cert_file`, outside of the Nix store. The daemon must be able to read
              the file, which {option}`services.redis-proxy.resp.tlsKeyFile` does not require.
            '';
          };
          admin = section "A separate listener for metrics and health." {
            listen = lib.mkOption {
              type = types.str;
              default = "";
              example = "127.0.0.1:9121";
              description = ''
                The address of `/metrics`, `/livez` and `/readyz`, as host and port. Empty serves them beside `/keys/`.
              '';
            };
          };
          redis = section "The upstream Redis." {
            url = lib.mkOption {
              type = types.str;
              default = "redis://127.0.0.1:6379/0";
              example = "rediss://cache.internal:6380/0";
              description = ''
                The address of Redis: `redis://[user@]host[:port][/database]`, the same with `rediss://` for TLS, or
                `unix:///path[?db=database]`. A password does not belong here but in
                {option}`services.redis-proxy.redis.passwordFile`.
              '';
            };
            password_file = secretFile ''
              The password for Redis, outside of the Nix store. The daemon must be able to read the file, which
              {option}`services.redis-proxy.redis.passwordFile` does not require.
            '';
            sentinel_password_file = secretFile ''
              The password for the sentinels, outside of the Nix store. The daemon must be able to read the file, which
              {option}`services.redis-proxy.redis.sentinelPasswordFile` does not require.
            '';
            tls_key_file = secretFile ''
              The private key (PEM) of `redis.tls_cert_file`, outside of the Nix store. The daemon must be able to read
              the file, which {option}`services.redis-proxy.redis.tlsKeyFile` does not require.
            '';
          };
          cache = section "The cache." {
            capacity = lib.mkOption {
              type = types.ints.unsigned;
              default = 10000;
              example = 500000;
              description = "The maximum number of cached keys. A reload applies a change.";
            };
            ttl = lib.mkOption {
              type = duration;
              default = "60s";
              example = "5m";
              description = ''
                The maximum age of a cached value, in seconds or as text with a unit. With 0 every read goes to Redis. A
                reload applies a change.
              '';
            };
          };
        };
      };
      default = { };
      example = lib.literalExpression ''
        {
          http.listen = "10.0.0.5:8080";
          http.allow_unprotected = true; # the firewall lets in two machines only
          cache.capacity = 500000;
          cache.stale_if_error = "10m";
          telemetry.log_format = "json";
        }
      '';
      description = ''
        The configuration: every key of `redis-proxy.toml`, which explains each. The daemon itself checks it when the
        system is built. Every user can read all of it, so secrets are refused here.

        A reload applies changes of `cache` (except `coherence`) and `telemetry.log_filter`, also to values that are
        already cached. All others restart the daemon. With a longer `daemon.drain_timeout`, set `TimeoutStopSec` of the
        service above it.
      '';
    };

    socketActivation = lib.mkOption {
      type = types.bool;
      default = false;
      example = true;
      description = ''
        Whether systemd holds the addresses, so that a restart rejects no client and ports below 1024 can be served.
        `http.listen`, `resp.listen`, `rest.listen` and `admin.listen` must be IP addresses then.
      '';
    };

    openFirewall = lib.mkOption {
      type = types.bool;
      default = false;
      example = true;
      description = ''
        Whether to open the ports of `settings.http.listen`, `settings.resp.listen` and `settings.rest.listen` in the
        firewall, unless the address is a loopback address. The port of `settings.admin.listen` stays closed.
      '';
    };

    http = {
      tokensFile = credentialFile "A file with the bearer tokens for reads over HTTP, one a line.";
      tlsKeyFile = credentialFile "A file with the private key (PEM) of `settings.http.tls_cert_file`.";
    };

    rest = {
      tokensFile = credentialFile "A file with the bearer tokens for REST, one a line, each with its rights.";
      redisPasswordFile = credentialFile "A file with the password of `settings.rest.redis_username`.";
      tlsKeyFile = credentialFile "A file with the private key (PEM) of `settings.rest.tls_cert_file`.";
    };

    resp = {
      passwordFile = credentialFile "A file with the password that Redis clients send to the proxy.";
      tlsKeyFile = credentialFile "A file with the private key (PEM) of `settings.resp.tls_cert_file`.";
    };

    redis = {
      createLocally = lib.mkOption {
        type = types.bool;
        default = false;
        example = true;
        description = ''
          Whether to run a Redis for the proxy on this machine, `services.redis.servers.redis-proxy`. It listens only
          on a unix socket, `/run/redis-redis-proxy/redis.sock`. Its clients must be in the group `redis-redis-proxy`.
        '';
      };

      passwordFile = credentialFile ''
        A file with the password for Redis. With {option}`services.redis-proxy.redis.createLocally` that Redis requires
        the same password.
      '';
      sentinelPasswordFile = credentialFile "A file with the password for the sentinels.";
      tlsKeyFile = credentialFile ''
        A file with the private key (PEM) of `settings.redis.tls_cert_file`, for a Redis that requires a certificate.
      '';
    };

    monitoring.scrape = lib.mkOption {
      type = types.bool;
      default = false;
      example = true;
      description = ''
        Whether the Prometheus of this machine collects the proxy's metrics, as the job `redis-proxy`. With TLS or
        tokens at `settings.http.listen` this needs `settings.admin.listen`.
      '';
    };
  };

  config = lib.mkIf cfg.enable {
    assertions = [
      {
        assertion = (cfg.settings.redis.password or "") == "";
        message = ''
          services.redis-proxy.settings.redis.password would be readable by everyone in the Nix store; set
          services.redis-proxy.redis.passwordFile to a file outside of it.
        '';
      }
      {
        assertion = builtins.match "[^:]*://[^@]*:[^@]+@.*" cfg.settings.redis.url == null;
        message = ''
          services.redis-proxy.settings.redis.url holds a password, which would be readable by everyone in the Nix
          store; leave it out and set services.redis-proxy.redis.passwordFile to a file outside of it.
        '';
      }
      {
        assertion = cfg.redis.createLocally -> ownSocket != null;
        message = ''
          services.redis-proxy.redis.createLocally needs the unix socket of that Redis; leave
          services.redis.servers.redis-proxy.unixSocket at its default, or run a Redis of your own and set
          services.redis-proxy.settings.redis.url.
        '';
      }
      {
        assertion =
          cfg.redis.createLocally && ownSocket != null
          -> lib.head (lib.splitString "?" cfg.settings.redis.url) == ownUrl;
        message = ''
          services.redis-proxy.redis.createLocally runs a Redis that services.redis-proxy.settings.redis.url does not
          name; leave the url out. For another database set it to ${ownUrl}?db=1.
        '';
      }
      {
        assertion = cfg.socketActivation || !lib.any isPrivileged listeners;
        message = ''
          services.redis-proxy listens on a port below 1024, which the daemon has no right to; choose another, or set
          services.redis-proxy.socketActivation, by which systemd opens it.
        '';
      }
      {
        assertion = cfg.socketActivation -> lib.all (listener: isAddress listener.host) listeners;
        message = ''
          services.redis-proxy.socketActivation needs IP addresses in settings.http.listen, resp.listen, rest.listen and
          admin.listen,
          since systemd looks up no names; found ${
            lib.concatMapStringsSep ", " (listener: listener.host) listeners
          }.
        '';
      }
      {
        assertion = cfg.openFirewall -> openPorts != [ ];
        message = ''
          services.redis-proxy.openFirewall opens no port, as other hosts reach none: settings.http.listen is
          ${cfg.settings.http.listen} and settings.resp.listen is "${cfg.settings.resp.listen}"; listen on an address of
          the network, or leave the firewall closed.
        '';
      }
      {
        assertion = cfg.monitoring.scrape -> config.services.prometheus.enable;
        message = ''
          services.redis-proxy.monitoring.scrape is for the Prometheus of this machine, and there is none; set
          services.prometheus.enable, or let the one elsewhere scrape the proxy.
        '';
      }
      {
        assertion = cfg.monitoring.scrape -> hasAdmin || !isHttpProtected;
        message = ''
          services.redis-proxy.monitoring.scrape needs settings.admin.listen, as the metrics beside /keys/ require TLS or
          a token, which Prometheus does not have; set it to an address such as 127.0.0.1:9121.
        '';
      }
    ]
    ++ map (secret: {
      assertion = cfg.settings.${secret.section}.${secret.key} == secret.path;
      message = ''
        services.redis-proxy.${secret.section}.${secret.option} and
        services.redis-proxy.settings.${secret.section}.${secret.key} are both set, and the second would win; set only
        the first.
      '';
    }) secrets;

    environment.etc.${file}.source = checkedFile;
    environment.systemPackages = [ cfg.package ];

    # Defaults, so that a value of the user meets an assertion instead of a conflict of definitions.
    services.redis-proxy.settings = lib.mkMerge (
      [ (lib.mkIf cfg.redis.createLocally { redis.url = lib.mkDefault ownUrl; }) ]
      ++ map (secret: { ${secret.section}.${secret.key} = lib.mkDefault secret.path; }) secrets
    );

    services.redis.servers.redis-proxy = lib.mkIf cfg.redis.createLocally {
      enable = true;
      requirePassFile = cfg.redis.passwordFile;
    };

    networking.firewall.allowedTCPPorts = lib.optionals cfg.openFirewall openPorts;

    services.prometheus.scrapeConfigs = lib.optional cfg.monitoring.scrape {
      job_name = "redis-proxy";
      static_configs = [ { targets = [ (reachable (if hasAdmin then admin else http)) ]; } ];
    };

    systemd.sockets = lib.mkIf cfg.socketActivation {
      redis-proxy = socketUnit "http" cfg.settings.http.listen;
      redis-proxy-admin = lib.mkIf hasAdmin (socketUnit "admin" cfg.settings.admin.listen);
      redis-proxy-resp = lib.mkIf hasResp (socketUnit "resp" cfg.settings.resp.listen);
      redis-proxy-rest = lib.mkIf hasRest (socketUnit "rest" cfg.settings.rest.listen);
    };

    # A switch to another system leaves sockets as they are, so a changed address would have no effect. This unit
    # reloads when an address changes, and so opens the sockets again. systemd restarts the daemon with them.
    systemd.services.redis-proxy-sockets = lib.mkIf cfg.socketActivation {
      description = "Changed addresses of redis-proxy";
      wantedBy = [ "multi-user.target" ];
      reloadTriggers = map (listener: "${listener.host}:${toString listener.port}") listeners;
      serviceConfig = {
        Type = "oneshot";
        RemainAfterExit = true;
        ExecStart = lib.getExe' pkgs.coreutils "true";
        # The pattern matches the sockets that exist, and is the same whatever they are.
        ExecReload = "${lib.getExe' config.systemd.package "systemctl"} restart redis-proxy*.socket";
      };
    };

    systemd.services.redis-proxy = {
      description = "Caching proxy for Redis";
      documentation = [ "man:redis-proxy(1)" ];
      wantedBy = [ "multi-user.target" ];
      wants = [ "network-online.target" ];
      after = [
        "network-online.target"
        "redis.service"
      ]
      ++ lib.optional cfg.redis.createLocally "redis-redis-proxy.service";
      requires = sockets;
      reloadTriggers = [ checkedFile ];
      restartTriggers = [ (builtins.toJSON settingsOfStart) ];
      # A switch to another system restarts the daemon, and the sockets stay open. Otherwise the switch would close
      # them too, and connections would be refused until it opens them again.
      stopIfChanged = false;

      serviceConfig = {
        # notify-reload sends SIGHUP itself, and waits until the daemon has reloaded.
        Type = if hasNotifyReload then "notify-reload" else "notify";
        ExecStart = "${lib.getExe cfg.package} --config /etc/${file}";
        ExecReload = lib.mkIf (!hasNotifyReload) "${lib.getExe' pkgs.coreutils "kill"} -HUP $MAINPID";
        LoadCredential = map (secret: "${secret.credential}:${secret.file}") secrets;
        SupplementaryGroups = lib.optional cfg.redis.createLocally config.services.redis.servers.redis-proxy.group;
        Sockets = sockets;
        Restart = "on-failure";
        RestartSec = 1;
        WatchdogSec = 10;
        # Longer than daemon.drain_timeout.
        TimeoutStopSec = lib.mkDefault 20;

        # It reads its configuration and uses the network, and needs nothing else.
        DynamicUser = true;
        UMask = "0077";
        # For warm.file = "/var/lib/redis-proxy/hot-keys".
        StateDirectory = "redis-proxy";
        StateDirectoryMode = "0700";
        CapabilityBoundingSet = "";
        AmbientCapabilities = "";
        NoNewPrivileges = true;
        DevicePolicy = "closed";
        LockPersonality = true;
        MemoryDenyWriteExecute = true;
        PrivateDevices = true;
        PrivateMounts = true;
        PrivateTmp = true;
        PrivateUsers = true;
        ProcSubset = "pid";
        ProtectClock = true;
        ProtectControlGroups = true;
        ProtectHome = true;
        ProtectHostname = true;
        ProtectKernelLogs = true;
        ProtectKernelModules = true;
        ProtectKernelTunables = true;
        ProtectProc = "invisible";
        ProtectSystem = "strict";
        RemoveIPC = true;
        RestrictAddressFamilies = [
          "AF_INET"
          "AF_INET6"
          "AF_UNIX"
        ];
        RestrictNamespaces = true;
        RestrictRealtime = true;
        RestrictSUIDSGID = true;
        SystemCallArchitectures = "native";
        SystemCallErrorNumber = "EPERM";
        SystemCallFilter = [
          "@system-service"
          "~@privileged @resources"
        ];
      };
    };
  };
}

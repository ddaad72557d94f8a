# The service redis-proxy. Its units say what those in systemd/ say; a check compares them.
#
# What must not be broken: no secret comes into the store, and a configuration that the daemon would refuse is refused
# when the system is built.
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

  # A file that holds a secret. The type refuses path literals and store paths: the generator of the configuration copies
  # a path literal into the store, where every user of the machine can read it.
  secretFile =
    description:
    lib.mkOption {
      inherit description;
      type = types.either (types.enum [ "" ]) types.externalPath;
      default = "";
      example = "/run/secrets/redis-proxy";
    };

  # The daemon opens no socket for this, and reads no secret.
  checkedFile = pkgs.runCommand "redis-proxy.toml" { } ''
    install -m 444 ${format.generate "redis-proxy.toml" cfg.settings} redis-proxy.toml
    ${lib.optionalString (pkgs.stdenv.buildPlatform.canExecute pkgs.stdenv.hostPlatform) ''
      ${lib.getExe cfg.package} check --config redis-proxy.toml
    ''}
    cp redis-proxy.toml $out
  '';

  # What SIGHUP puts in force; a check compares it with the keys marked "(live)" in redis-proxy.toml. Of all else a
  # change restarts the daemon, which would refuse to reload it.
  liveKeys = {
    cache = [
      "capacity"
      "coherence_timeout"
      "negative_ttl"
      "policy"
      "stale_if_error"
      "ttl"
    ];
    telemetry = [ "log_filter" ];
  };
  settingsOfStart = lib.filterAttrs (_: keys: keys != { }) (
    lib.mapAttrs (
      name: keys: if lib.isAttrs keys then removeAttrs keys (liveKeys.${name} or [ ]) else keys
    ) cfg.settings
  );

  # host:port; what is neither is told by the daemon.
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
  hasAdmin = cfg.settings.admin.listen != "";
  # A unix socket is the daemon's own to make.
  hasResp = cfg.settings.resp.listen != "" && !lib.hasPrefix "unix:" cfg.settings.resp.listen;
  listeners = [ http ] ++ lib.optional hasAdmin admin ++ lib.optional hasResp resp;

  isLoopback = host: host == "localhost" || host == "[::1]" || lib.hasPrefix "127." host;
  isAddress = host: builtins.match "[0-9.]+|\\[[0-9a-fA-F:.]+]" host != null;
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
    ++ lib.optional (cfg.socketActivation && hasResp) "redis-proxy-resp.socket";
in
{
  options.services.redis-proxy = {
    enable = lib.mkEnableOption "redis-proxy, a near cache for Redis that answers reads over HTTP";

    package = lib.mkPackageOption pkgs "redis-proxy" { };

    settings = lib.mkOption {
      type = types.submodule {
        freeformType = format.type;
        options = {
          http = section "Reads over HTTP." {
            listen = lib.mkOption {
              type = types.str;
              default = "127.0.0.1:8080";
              example = "0.0.0.0:8080";
              description = ''
                Where reads are served, as host and port. Where other machines reach it, the daemon starts only if it
                asks who comes (`http.tokens_file`, `http.tls_client_ca_file`), or if `http.allow_unprotected` says
                that something else keeps strangers away.
              '';
            };
            tls_key_file = secretFile "The private key (PEM) of `http.tls_cert_file`, outside of the Nix store.";
            tokens_file = secretFile "The bearer tokens for reads over HTTP, outside of the Nix store.";
          };
          resp = section "Clients of Redis." {
            listen = lib.mkOption {
              type = types.str;
              default = "";
              example = "127.0.0.1:6380";
              description = ''
                Where clients of Redis are served, as host and port or `unix:///path`; empty: nowhere.
              '';
            };
            password_file = secretFile "The password for clients of Redis, outside of the Nix store.";
            tls_key_file = secretFile "The private key (PEM) of `resp.tls_cert_file`, outside of the Nix store.";
          };
          admin = section "Metrics and health on a listener of their own." {
            listen = lib.mkOption {
              type = types.str;
              default = "";
              example = "127.0.0.1:9121";
              description = ''
                Where `/metrics`, `/livez` and `/readyz` are served, as host and port; empty: beside `/keys/`.
              '';
            };
          };
          redis = section "The Redis behind." {
            url = lib.mkOption {
              type = types.str;
              default = "redis://127.0.0.1:6379/0";
              example = "rediss://cache.internal:6380/0";
              description = ''
                Where Redis is: `redis://[user@]host[:port][/database]`, the same with `rediss://` for TLS, or
                `unix:///path[?db=database]`. A password does not belong here but into
                {option}`services.redis-proxy.redis.passwordFile`.
              '';
            };
            password_file = secretFile ''
              The password for Redis, outside of the Nix store. The daemon must be able to read the file, which
              {option}`services.redis-proxy.redis.passwordFile` does not require.
            '';
            sentinel_password_file = secretFile "The password for the sentinels, outside of the Nix store.";
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
              description = "How many keys are kept at most. A change takes effect by a reload.";
            };
            ttl = lib.mkOption {
              type = duration;
              default = "60s";
              example = "5m";
              description = ''
                How old a value may be, in seconds or as text with a unit; 0: nothing is given without asking Redis. A
                change takes effect by a reload.
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
        The configuration: every key of `redis-proxy.toml`, where each is explained. The daemon itself checks it when
        the system is built. All of it can be read by everyone, so secrets are refused here.

        Changes of `cache` (but `coherence`) and `telemetry.log_filter` take effect by a reload, for what is cached
        already too; all others restart the daemon. With a longer `daemon.drain_timeout`, set `TimeoutStopSec` of the
        service above it.
      '';
    };

    socketActivation = lib.mkOption {
      type = types.bool;
      default = false;
      example = true;
      description = ''
        Whether systemd holds the addresses, so that a restart turns nobody away and ports below 1024 can be served.
        `http.listen`, `resp.listen` and `admin.listen` must be IP addresses then.
      '';
    };

    openFirewall = lib.mkOption {
      type = types.bool;
      default = false;
      example = true;
      description = ''
        Whether to open the port of `settings.http.listen` in the firewall. The port of `settings.admin.listen` stays
        closed.
      '';
    };

    redis = {
      createLocally = lib.mkOption {
        type = types.bool;
        default = false;
        example = true;
        description = ''
          Whether to run a Redis for the proxy on this machine, `services.redis.servers.redis-proxy`, which listens
          only on a unix socket, `/run/redis-redis-proxy/redis.sock`. Who writes to it must be in the group
          `redis-redis-proxy`.
        '';
      };

      passwordFile = lib.mkOption {
        type = types.nullOr types.externalPath;
        default = null;
        example = "/run/secrets/redis-password";
        description = ''
          A file with the password for Redis. systemd hands it to the daemon as a credential, so only root has to be
          able to read it; a new password needs a restart. With {option}`services.redis-proxy.redis.createLocally` it
          is also what that Redis asks for.
        '';
      };

      tlsKeyFile = lib.mkOption {
        type = types.nullOr types.externalPath;
        default = null;
        example = "/run/secrets/redis-client.key";
        description = ''
          A file with the private key (PEM) for `settings.redis.tls_cert_file`, for a Redis that asks for a
          certificate. systemd hands it to the daemon as a credential.
        '';
      };
    };

    monitoring = {
      scrape = lib.mkOption {
        type = types.bool;
        default = false;
        example = true;
        description = "Whether the Prometheus of this machine collects the proxy's metrics, as the job `redis-proxy`.";
      };

      alerts = lib.mkOption {
        type = types.bool;
        default = false;
        example = true;
        description = "Whether the Prometheus of this machine has the alert rules of {file}`dashboards/alerts.yml`.";
      };

      dashboard = lib.mkOption {
        type = types.bool;
        default = false;
        example = true;
        description = "Whether the Grafana of this machine has the dashboard {file}`dashboards/redis-proxy.json`.";
      };
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
        assertion = cfg.redis.passwordFile == null || cfg.settings.redis.password_file == "";
        message = ''
          services.redis-proxy.redis.passwordFile and services.redis-proxy.settings.redis.password_file are both set,
          and the second would win; set only the first.
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
          services.redis-proxy.socketActivation needs IP addresses in settings.http.listen, resp.listen and admin.listen,
          since systemd looks up no names; found ${
            lib.concatMapStringsSep ", " (listener: listener.host) listeners
          }.
        '';
      }
      {
        assertion = cfg.openFirewall -> !isLoopback http.host;
        message = ''
          services.redis-proxy.openFirewall opens a port that nobody outside can reach, as settings.http.listen is
          ${cfg.settings.http.listen}; listen on an address of the network, or leave the firewall closed.
        '';
      }
      {
        assertion = (cfg.monitoring.scrape || cfg.monitoring.alerts) -> config.services.prometheus.enable;
        message = ''
          services.redis-proxy.monitoring.scrape and alerts are for the Prometheus of this machine, and there is none;
          set services.prometheus.enable, or let the one elsewhere scrape the proxy.
        '';
      }
      {
        assertion = cfg.monitoring.dashboard -> config.services.grafana.enable;
        message = ''
          services.redis-proxy.monitoring.dashboard is for the Grafana of this machine, and there is none; set
          services.grafana.enable.
        '';
      }
    ];

    environment.etc.${file}.source = checkedFile;
    environment.systemPackages = [ cfg.package ];

    services.redis-proxy.settings.redis = lib.mkMerge [
      (lib.mkIf cfg.redis.createLocally {
        url = "unix://${config.services.redis.servers.redis-proxy.unixSocket}";
      })
      (lib.mkIf (cfg.redis.tlsKeyFile != null) { tls_key_file = "${credentials}/redis-tls-key"; })
    ];

    services.redis.servers.redis-proxy = lib.mkIf cfg.redis.createLocally {
      enable = true;
      requirePassFile = cfg.redis.passwordFile;
    };

    networking.firewall.allowedTCPPorts = lib.optional (
      cfg.openFirewall && http.port != null
    ) http.port;

    services.prometheus = {
      scrapeConfigs = lib.optional cfg.monitoring.scrape {
        job_name = "redis-proxy";
        static_configs = [ { targets = [ (reachable (if hasAdmin then admin else http)) ]; } ];
      };
      ruleFiles = lib.optional cfg.monitoring.alerts ./dashboards/alerts.yml;
    };

    services.grafana.provision = lib.mkIf cfg.monitoring.dashboard {
      enable = true;
      dashboards.settings.providers = [
        {
          name = "redis-proxy";
          options.path = pkgs.linkFarm "redis-proxy-dashboards" {
            "redis-proxy.json" = ./dashboards/redis-proxy.json;
          };
        }
      ];
    };

    systemd.sockets = lib.mkIf cfg.socketActivation {
      redis-proxy = socketUnit "http" cfg.settings.http.listen;
      redis-proxy-admin = lib.mkIf hasAdmin (socketUnit "admin" cfg.settings.admin.listen);
      redis-proxy-resp = lib.mkIf hasResp (socketUnit "resp" cfg.settings.resp.listen);
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

      serviceConfig = {
        Type = "notify";
        ExecStart = "${lib.getExe cfg.package} --config /etc/${file}";
        ExecReload = "${lib.getExe' pkgs.coreutils "kill"} -HUP $MAINPID";
        LoadCredential =
          lib.optional (cfg.redis.passwordFile != null) "redis-password:${cfg.redis.passwordFile}"
          ++ lib.optional (cfg.redis.tlsKeyFile != null) "redis-tls-key:${cfg.redis.tlsKeyFile}";
        SupplementaryGroups = lib.optional cfg.redis.createLocally config.services.redis.servers.redis-proxy.group;
        # All of them, so that a switch to another system opens them anew with the daemon.
        Sockets = sockets;
        Restart = "on-failure";
        RestartSec = 1;
        WatchdogSec = 10;
        # Longer than daemon.drain_timeout.
        TimeoutStopSec = lib.mkDefault 20;

        # It reads its configuration, speaks to the network, and does nothing else.
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

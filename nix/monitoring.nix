# The parts of the module that need files of the project: alert rules for Prometheus, a dashboard for
# Grafana.
{
  config,
  lib,
  pkgs,
  ...
}:

let
  cfg = config.services.redis-proxy.monitoring;
  inherit (config.services) grafana prometheus;
  dashboards = pkgs.linkFarm "redis-proxy-dashboards" {
    "redis-proxy.json" = ../dashboards/redis-proxy.json;
  };
  projectRunbook = "https://github.com/redis-proxy/redis-proxy/blob/main/docs/src/operations/runbook.md";
  hasOwnPath = grafana.provision.dashboards.path != null;
in
{
  options.services.redis-proxy.monitoring = {
    alerts = lib.mkOption {
      type = lib.types.bool;
      default = false;
      example = true;
      description = "Whether the Prometheus of this machine has the alert rules of {file}`dashboards/alerts.yml`.";
    };

    runbookUrl = lib.mkOption {
      type = lib.types.nullOr lib.types.str;
      default = null;
      example = "https://wiki.example/redis-proxy";
      description = "The page of the runbook that the alerts name in `runbook_url`; null: the project's own.";
    };

    dashboard = lib.mkOption {
      type = lib.types.bool;
      default = false;
      example = true;
      description = "Whether the Grafana of this machine has the dashboard {file}`dashboards/redis-proxy.json`.";
    };
  };

  config = lib.mkIf config.services.redis-proxy.enable {
    assertions = [
      {
        assertion = cfg.alerts -> prometheus.enable;
        message = ''
          services.redis-proxy.monitoring.alerts is for the Prometheus of this machine, and there is none; set
          services.prometheus.enable, or give dashboards/alerts.yml to the one elsewhere.
        '';
      }
      {
        assertion = cfg.dashboard -> grafana.enable;
        message = ''
          services.redis-proxy.monitoring.dashboard is for the Grafana of this machine, and there is none; set
          services.grafana.enable.
        '';
      }
      {
        assertion = cfg.dashboard && grafana.enable -> !hasOwnPath;
        message = ''
          services.redis-proxy.monitoring.dashboard sets services.grafana.provision.dashboards.settings, which Grafana
          does not take together with services.grafana.provision.dashboards.path; unset one of the two. A provider of
          your own may have options.path = "${dashboards}".
        '';
      }
    ];

    services.prometheus.ruleFiles = lib.optional cfg.alerts (
      if cfg.runbookUrl == null then
        ../dashboards/alerts.yml
      else
        pkgs.writeText "redis-proxy-alerts.yml" (
          lib.replaceStrings [ projectRunbook ] [ cfg.runbookUrl ] (lib.readFile ../dashboards/alerts.yml)
        )
    );

    services.grafana.provision = lib.mkIf cfg.dashboard {
      enable = true;
      # Not beside a path, otherwise Grafana's own assertion would fail too.
      dashboards.settings = lib.mkIf (!hasOwnPath) {
        providers = [
          {
            name = "redis-proxy";
            options.path = dashboards;
          }
        ];
      };
    };
  };
}

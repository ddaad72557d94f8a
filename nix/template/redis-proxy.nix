{
  services.redis-proxy = {
    enable = true;
    # A Redis for the proxy and your applications, on a unix socket. Omit it and set
    # settings.redis.url to use an existing one.
    redis.createLocally = true;
    redis.passwordFile = "/run/secrets/redis-password";
    # The keys of redis-proxy.toml.
    settings = {
      http.listen = "127.0.0.1:8080";
      cache.capacity = 50000;
      cache.ttl = "5m";
    };
    # systemd holds the address, so a restart rejects no client.
    socketActivation = true;
    # A job for the Prometheus of this machine.
    monitoring.scrape = true;
  };

  services.prometheus.enable = true;
}

# The integration tests, against a real redis-server, with the checks that only a debug build has.
#
# A test with a missing tool prints a line that begins with SKIPPED.
{
  lib,
  curl,
  redis,
  redis-proxy,
}:

redis-proxy.overrideAttrs (old: {
  pname = "${old.pname}-tests";

  # Everything except the files of Nix and CI. A list of the needed files would lose tests silently.
  src = lib.fileset.toSource {
    root = ../.;
    fileset = lib.fileset.unions [
      (lib.fileset.difference ../. (
        lib.fileset.unions [
          (lib.fileset.maybeMissing ../.ci)
          (lib.fileset.maybeMissing ../.git)
          (lib.fileset.maybeMissing ../target)
          ../flake.lock
          ../flake.nix
          ../nix
          ../nixos-module.nix
        ]
      ))
      # A test compares the README with it.
      ./template/redis-proxy.nix
    ];
  };

  dontCargoBuild = true;
  buildPhase = "true";
  installPhase = "touch $out";

  doCheck = true;
  # The name that cargo itself takes.
  cargoCheckType = "dev";
  # The unit tests depend on nothing that differs here, and would build the program a second time.
  # `make test` runs them, and the few tests in bench/. For so few tests the optimisation costs more
  # than it saves.
  cargoTestFlags = [
    "--config=profile.dev.package.redis-proxy.opt-level=0"
    "--test=it"
  ];
  # The tests wait more than they compute. Those of failovers need servers that keep up with each
  # other, which a build machine does not promise. Those of memory and of random commands take most of
  # the time, and depend on the sandbox least. `make test` runs them all.
  checkFlags = [
    "--test-threads=6"
    "--skip=cluster"
    "--skip=differential"
    "--skip=idle::"
    "--skip=in_flight::"
    "--skip=keep_hot"
    "--skip=memory"
    "--skip=pairs_over_two_proxies"
    "--skip=read_your_writes"
    "--skip=reply_protocols"
    "--skip=rest::"
    "--skip=sentinel::"
    "--skip=under_load"
    "--skip=verify::"
  ];
  # No second build and no debugger follows, so their data is not built.
  env = old.env or { } // {
    CARGO_INCREMENTAL = "0";
    CARGO_PROFILE_DEV_DEBUG = "0";
  };
  nativeCheckInputs = [
    curl
    redis
  ];

  doInstallCheck = false;
  passthru = { };
})

# The checks of `nix flake check`, beside the evaluation of everything.
{
  pkgs,
  package,
  module,
}:

let
  inherit (pkgs) lib;
  tests = package.tests.integration;
in
{
  inherit package tests;

  clippy = tests.overrideAttrs (old: {
    pname = "redis-proxy-clippy";
    nativeBuildInputs = old.nativeBuildInputs ++ [ pkgs.clippy ];
    # `make check` lints tests and benchmarks too, whose dependencies would take as long again here.
    buildPhase = "cargo clippy --lib --bins --frozen -- --deny warnings";
    doCheck = false;
  });

  rustfmt =
    pkgs.runCommand "redis-proxy-rustfmt"
      {
        nativeBuildInputs = [
          pkgs.cargo
          pkgs.rustfmt
        ];
      }
      ''
        cd ${tests.src}
        cargo fmt --check
        touch $out
      '';
}
// lib.optionalAttrs pkgs.stdenv.hostPlatform.isLinux {
  module-cases = import ./module-cases.nix { inherit pkgs module; };
  units = import ./units.nix { inherit pkgs module; };
  vm = pkgs.testers.runNixOSTest (import ./vm-test.nix { inherit module; });
}

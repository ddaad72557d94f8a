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

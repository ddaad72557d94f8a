# The checks of `nix flake check`, beside the evaluation of everything.
{
  pkgs,
  package,
  module,
  template,
}:

let
  inherit (pkgs) lib;
  tests = package.tests.integration;
  nixFiles = lib.fileset.toSource {
    root = ../.;
    fileset = lib.fileset.unions [
      ../flake.nix
      ../nixos-module.nix
      ./.
    ];
  };

  # `command` over the Nix files of the project. A stand-in for nixpkgs may lack the program.
  lint =
    program: command:
    pkgs.runCommand "redis-proxy-${program.pname}" { nativeBuildInputs = [ program ]; } ''
      if type -P ${program.meta.mainProgram} > /dev/null; then
        find ${nixFiles} -name '*.nix' -print0 | xargs -0 ${command}
      else
        echo 'SKIPPED ${program.pname}: the program is missing'
      fi
      touch $out
    '';
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

  nixfmt = lint pkgs.nixfmt "nixfmt --check";
  deadnix = lint pkgs.deadnix "deadnix --fail";

  module-cases = import ./module-cases.nix { inherit pkgs module; };
  units = import ./units.nix { inherit pkgs module; };
  nixpkgs = import ./nixpkgs { inherit pkgs; };
  # Evaluated and not built: it is a whole system.
  template = pkgs.writeText "redis-proxy-template" (
    builtins.unsafeDiscardStringContext template.config.system.build.toplevel.drvPath
  );
  inherit (package.tests) vm vm-secrets;
}

# What `nix flake check` runs beside evaluating everything.
{
  pkgs,
  package,
  module,
}:

let
  inherit (pkgs) lib;
in
{
  inherit package;

  clippy = package.overrideAttrs (old: {
    pname = "${old.pname}-clippy";
    nativeBuildInputs = old.nativeBuildInputs ++ [ pkgs.clippy ];
    buildPhase = "cargo clippy --all-targets --frozen -- --deny warnings";
    installPhase = "touch $out";
    doCheck = false;
    doInstallCheck = false;
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
        cd ${package.src}
        cargo fmt --check
        touch $out
      '';
}
// lib.optionalAttrs pkgs.stdenv.hostPlatform.isLinux {
  module-cases = import ./module-cases.nix { inherit pkgs module; };
  units = import ./units.nix { inherit pkgs module; };
  vm = pkgs.testers.runNixOSTest (import ./vm-test.nix { inherit module; });
}

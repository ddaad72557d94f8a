# A tree for nixpkgs: the package, the module and its test in the places that nixpkgs has for them.
{ pkgs }:

let
  inherit (pkgs) lib;
  inherit (lib.importTOML ../../Cargo.toml) package;
  upstream = pkgs.extend (
    final: _: {
      redis-proxy = final.callPackage ./package.nix {
        nixosTests.redis-proxy = test;
        nix-update-script = _: [ ];
      };
    }
  );
  # By themselves, as in nixpkgs: without the flake, and without the rest of the module.
  test = upstream.testers.runNixOSTest {
    imports = [ ../vm-test.nix ];
    defaults = {
      imports = [ ../../nixos-module.nix ];
      services.redis-proxy.package = upstream.redis-proxy;
    };
  };
  machine = upstream.nixos {
    imports = [
      ../../nixos-module.nix
      ../template/redis-proxy.nix
    ];
    boot.isContainer = true;
    system.stateVersion = lib.trivial.release;
  };

  # The head of the module is about the project's other files.
  module =
    let
      text = lib.readFile ../../nixos-module.nix;
    in
    pkgs.writeText "redis-proxy.nix" (
      "{" + lib.concatStringsSep "\n{" (lib.tail (lib.splitString "\n{" text))
    );
  testFile = pkgs.writeText "redis-proxy-test.nix" (
    lib.replaceStrings [ "./template/redis-proxy.nix" ] [ "./redis-proxy/example.nix" ] (
      lib.readFile ../vm-test.nix
    )
  );
in
assert lib.assertMsg (
  upstream.redis-proxy.version == package.version
  && upstream.redis-proxy.meta.description == package.description
) "nix/nixpkgs/package.nix has another version or description than Cargo.toml";
assert lib.isString upstream.redis-proxy.drvPath;
assert lib.isString test.drvPath;
assert lib.isString machine.config.system.build.toplevel.drvPath;
pkgs.linkFarm "redis-proxy-for-nixpkgs" {
  "README.md" = ./README.md;
  "pkgs/by-name/re/redis-proxy/package.nix" = ./package.nix;
  "nixos/modules/services/databases/redis-proxy.nix" = module;
  "nixos/tests/redis-proxy.nix" = testFile;
  "nixos/tests/redis-proxy/example.nix" = ../template/redis-proxy.nix;
}

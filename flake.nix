{
  description = "Caching proxy (near cache) for Redis: serves hot reads from memory, over HTTP and to Redis clients";

  inputs.nixpkgs.url = "github:NixOS/nixpkgs/nixos-26.05";

  outputs =
    { self, nixpkgs }:
    let
      inherit (nixpkgs) lib;
      # The systems on which the tests pass. They read /proc, so macOS is not among them.
      forEachSystem =
        f:
        lib.genAttrs [
          "x86_64-linux"
          "aarch64-linux"
        ] (system: f nixpkgs.legacyPackages.${system} self.packages.${system}.default);
    in
    {
      packages = forEachSystem (
        pkgs: package: {
          default = pkgs.callPackage ./nix/package.nix { };
          redis-proxy = package;
        }
      );

      apps = forEachSystem (
        _: package: {
          default = {
            type = "app";
            program = lib.getExe package;
            meta.description = "Serve reads of a Redis from memory, over HTTP and to Redis clients";
          };
        }
      );

      overlays.default = final: _: {
        redis-proxy = final.callPackage ./nix/package.nix { };
      };

      nixosModules = {
        default = {
          # Without a key, a second import would define `package` again.
          key = "${toString ./flake.nix}#nixosModules.default";
          _file = ./flake.nix;
          imports = [
            ./nixos-module.nix
            ./nix/monitoring.nix
            # From the packages of the machine, so that it is built for its system, also by another one.
            (
              { pkgs, ... }:
              {
                services.redis-proxy.package = lib.mkDefault (pkgs.callPackage ./nix/package.nix { });
              }
            )
          ];
        };
        redis-proxy = self.nixosModules.default;
      };

      checks = forEachSystem (
        pkgs: package:
        import ./nix/checks.nix {
          inherit pkgs package;
          module = self.nixosModules.default;
          template =
            ((import ./nix/template/flake.nix).outputs {
              inherit nixpkgs;
              redis-proxy = self;
            }).nixosConfigurations.machine;
        }
      );

      templates.default = {
        path = ./nix/template;
        description = "A NixOS machine with redis-proxy and a Redis of its own";
      };

      devShells = forEachSystem (
        pkgs: package: {
          default = pkgs.mkShell {
            inputsFrom = [ package ];
            packages = [
              pkgs.cargo
              pkgs.cargo-deny
              pkgs.clippy
              pkgs.curl
              pkgs.deadnix
              pkgs.nixfmt
              pkgs.redis
              pkgs.rust-analyzer
              pkgs.rustc
              pkgs.rustfmt
            ];
          };
        }
      );

      formatter = forEachSystem (pkgs: _: pkgs.nixfmt-tree);
    };
}

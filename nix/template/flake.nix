{
  description = "A NixOS machine with redis-proxy";

  inputs = {
    nixpkgs.url = "github:NixOS/nixpkgs/nixos-26.05";
    # The repository of redis-proxy, for example git+https://git.example.org/redis-proxy.
    redis-proxy.url = "git+https://git.example.org/redis-proxy";
    redis-proxy.inputs.nixpkgs.follows = "nixpkgs";
  };

  outputs =
    { nixpkgs, redis-proxy, ... }:
    {
      nixosConfigurations.machine = nixpkgs.lib.nixosSystem {
        modules = [
          redis-proxy.nixosModules.default
          ./redis-proxy.nix
          # Replace this with the configuration of your machine, such as ./hardware-configuration.nix.
          {
            nixpkgs.hostPlatform = "x86_64-linux";
            boot.isContainer = true;
            system.stateVersion = "26.05";
          }
        ];
      };
    };
}

# The program with its manual page and completions; its tests run while it is built, against a real redis-server.
{
  lib,
  stdenv,
  rustPlatform,
  installShellFiles,
  versionCheckHook,
  redis,
}:

let
  inherit (lib.importTOML ../Cargo.toml) package;
in
rustPlatform.buildRustPackage {
  pname = package.name;
  inherit (package) version;

  # Everything but what Nix and the CI read: a list of what belongs in would lose tests in silence.
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
      # The tests hold the README against it.
      ./example.nix
    ];
  };

  cargoLock.lockFile = ../Cargo.lock;
  # As `cargo test` does, so with what only a debug build checks.
  checkType = "dev";
  # Real clients come from registries that a build cannot reach.
  checkFlags = [ "--skip=resp::clients" ];

  nativeBuildInputs = [ installShellFiles ];
  nativeCheckInputs = [ redis ];

  postInstall = lib.optionalString (stdenv.buildPlatform.canExecute stdenv.hostPlatform) ''
    $out/bin/redis-proxy man > redis-proxy.1
    installManPage redis-proxy.1
    installShellCompletion --cmd redis-proxy \
      --bash <($out/bin/redis-proxy completions bash) \
      --zsh <($out/bin/redis-proxy completions zsh) \
      --fish <($out/bin/redis-proxy completions fish)
  '';

  doInstallCheck = true;
  nativeInstallCheckInputs = [ versionCheckHook ];

  meta = {
    inherit (package) description;
    license = lib.licenses.asl20;
    mainProgram = "redis-proxy";
    platforms = lib.platforms.unix;
  };
}

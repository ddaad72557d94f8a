# The program with its manual page and completions. Its tests are separate derivations, in
# passthru.tests, so that `nix run` builds the program once and starts it.
{
  lib,
  stdenv,
  rustPlatform,
  callPackage,
  testers,
  installShellFiles,
  versionCheckHook,
}:

let
  inherit (lib.importTOML ../Cargo.toml) package;
in
rustPlatform.buildRustPackage (finalAttrs: {
  pname = package.name;
  inherit (package) version;

  # The files that the build reads and no others, otherwise a change of a test or a document would
  # rebuild the package.
  src = lib.fileset.toSource {
    root = ../.;
    fileset = lib.fileset.unions [
      ../Cargo.lock
      ../Cargo.toml
      ../redis-proxy.toml
      ../src
    ];
  };

  cargoLock.lockFile = ../Cargo.lock;
  doCheck = false;

  nativeBuildInputs = [ installShellFiles ];

  postInstall = lib.optionalString (stdenv.buildPlatform.canExecute stdenv.hostPlatform) ''
    $out/bin/redis-proxy man --directory man
    installManPage man/*.1
    installShellCompletion --cmd redis-proxy \
      --bash <($out/bin/redis-proxy completions bash) \
      --zsh <($out/bin/redis-proxy completions zsh) \
      --fish <($out/bin/redis-proxy completions fish)
  '';

  doInstallCheck = true;
  nativeInstallCheckInputs = [ versionCheckHook ];
  postInstallCheck = ''
    $out/bin/redis-proxy check --config ${../redis-proxy.toml}
  '';

  passthru.tests =
    let
      onMachine =
        test:
        testers.runNixOSTest {
          imports = [ test ];
          defaults = {
            imports = [
              ../nixos-module.nix
              ./monitoring.nix
            ];
            services.redis-proxy.package = finalAttrs.finalPackage;
          };
        };
    in
    {
      integration = callPackage ./tests.nix { redis-proxy = finalAttrs.finalPackage; };
      vm = onMachine ./vm-test.nix;
      vm-secrets = onMachine ./vm-test-secrets.nix;
    };

  meta = {
    inherit (package) description;
    license = lib.licenses.asl20;
    mainProgram = "redis-proxy";
    maintainers = [
      {
        name = "The redis-proxy maintainers";
        email = "maintainers@redis-proxy.invalid";
      }
    ];
    # Its tests read /proc.
    platforms = lib.platforms.linux;
  }
  # The repository is named in Cargo.toml, once it is public.
  // lib.optionalAttrs (package ? repository) {
    homepage = package.repository;
    changelog = "${package.repository}/blob/v${package.version}/CHANGELOG.md";
  };
})

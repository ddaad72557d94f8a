{
  lib,
  stdenv,
  rustPlatform,
  fetchFromGitHub,
  installShellFiles,
  versionCheckHook,
  curl,
  redis,
  nixosTests,
  nix-update-script,
}:

rustPlatform.buildRustPackage (finalAttrs: {
  pname = "redis-proxy";
  version = "0.1.0";

  src = fetchFromGitHub {
    owner = "redis-proxy";
    repo = "redis-proxy";
    tag = "v${finalAttrs.version}";
    hash = lib.fakeHash;
  };

  cargoHash = lib.fakeHash;

  nativeBuildInputs = [ installShellFiles ];

  # A debug build has more assertions, and the tests need no release build.
  checkType = "debug";
  nativeCheckInputs = [
    curl
    redis
  ];
  cargoTestFlags = [
    "--lib"
    "--bins"
    "--test=it"
  ];
  # The tests of failovers need servers that keep up with each other, which a build machine does not promise.
  checkFlags = [
    "--test-threads=4"
    "--skip=sentinel::"
    "--skip=cluster"
  ];
  env.SOAK_SECONDS = "5";

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

  passthru = {
    tests = {
      inherit (nixosTests) redis-proxy;
    };
    updateScript = nix-update-script { };
  };

  meta = {
    description = "Caching proxy (near cache) for Redis: serves hot reads from memory, over HTTP and to Redis clients";
    homepage = "https://github.com/redis-proxy/redis-proxy";
    changelog = "https://github.com/redis-proxy/redis-proxy/blob/v${finalAttrs.version}/CHANGELOG.md";
    license = lib.licenses.asl20;
    maintainers = [ ];
    mainProgram = "redis-proxy";
    platforms = lib.platforms.linux;
  };
})

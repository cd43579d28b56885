#!/usr/bin/env bash
# Packages the chart with its provenance and checks the signature: sign.sh KEY FOLDER [HELM]
#
# KEY      whose secret key in your GnuPG home signs, as gpg finds it (RSA: Helm reads no other); without a passphrase,
#          or with HELM_KEY_PASSPHRASE_FILE naming a file that holds it
# FOLDER   where easel-VERSION.tgz, easel-VERSION.tgz.prov and public.gpg go
# HELM     the binary; `helm`, if none is given
set -euo pipefail
key=${1:?whose key signs?} folder=${2:?where to?} helm=${3:-helm}
chart=$(cd "$(dirname "$0")/../.." && pwd)/helm/easel
mkdir -p "$folder"
# Helm reads GnuPG 1's keyrings only, so the two keys are put into such for as long as this takes.
rings=$(mktemp -d)
trap 'rm -rf "$rings"' EXIT
chmod 700 "$rings"
unlock=()
[ -z "${HELM_KEY_PASSPHRASE_FILE:-}" ] || unlock=(--pinentry-mode loopback --passphrase-file "$HELM_KEY_PASSPHRASE_FILE")
gpg --batch --quiet "${unlock[@]}" --export-secret-keys "$key" > "$rings/secret.gpg"
gpg --batch --quiet --export "$key" > "$folder/public.gpg"
test -s "$rings/secret.gpg" || { echo "gpg has no secret key for $key" >&2; exit 1; }
sign=(--sign --key "$key" --keyring "$rings/secret.gpg")
[ -z "${HELM_KEY_PASSPHRASE_FILE:-}" ] || sign+=(--passphrase-file "$HELM_KEY_PASSPHRASE_FILE")
"$helm" package "$chart" --destination "$folder" "${sign[@]}"
"$helm" verify "$folder"/easel-*.tgz --keyring "$folder/public.gpg"

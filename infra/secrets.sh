#!/bin/sh
# Makes the secrets of compose.yaml, each a file in FOLDER (by default infra/secrets, which git
# ignores). Secrets that are there already stay as they are.
#
#   infra/secrets.sh [FOLDER]
set -eu
folder=${1:-$(dirname "$0")/secrets}
mkdir -p "$folder"
chmod 700 "$folder"  # the files are readable by the users inside the containers, the folder is not
random() { head -c 32 /dev/urandom | od -An -tx1 | tr -d ' \n'; }
keep() {
    if [ ! -e "$folder/$1" ]; then
        cat > "$folder/$1.new"
        chmod 444 "$folder/$1.new"
        mv "$folder/$1.new" "$folder/$1"
    fi
}
random | keep ray_token
random | keep service_token
random | keep postgres_password
random | keep grafana_password
key=$(random)
printf '[default]\naws_access_key_id = echostill\naws_secret_access_key = %s\n' "$key" | keep s3_credentials
key=$(sed -n 's/^aws_secret_access_key = //p' "$folder/s3_credentials")
printf '{"identities": [{"name": "echostill", "credentials": [{"accessKey": "echostill", "secretKey": "%s"}], "actions": ["Admin", "Read", "Write", "List", "Tagging"]}]}\n' "$key" | keep s3.json
echo "$folder"

# The images of the services; `make all-docker` builds them. One build stage, one folder of packages that all share,
# and a small stage for each service that says how it is started and when it is well.
#
#   docker build --target compute-api .
#
# The base is named here only. --build-arg BASE takes any image with Python 3.11 and its module venv.
ARG BASE=python:3.11.16-slim-bookworm@sha256:a36c24f9cbdf4fd0f52d67f0823eeac19c2028c637cecc392d97f980d4fec56b

FROM ${BASE} AS build
WORKDIR /src
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore PYTHONHASHSEED=0
RUN python3 -m venv /tools && python3 -m venv --without-pip /opt/morpheo
# Wheels that are here already are taken; pip looks for the others where its settings say, unless PIP_NO_INDEX is set.
COPY requirements.txt requirements-build.txt build/wheels/3.1[1] wheels/
ARG PIP_NO_INDEX
RUN /tools/bin/pip install -q --require-hashes --find-links wheels -r wheels/requirements-build.txt && \
    /tools/bin/pip --python /opt/morpheo/bin/python install -q --no-compile --require-hashes --find-links wheels \
        -r wheels/requirements.txt && \
    find /opt/morpheo/lib -path '*/numpy/*' \( -type d -name tests -o -name '*.pyi' -o -name '*.a' \) -prune \
        -exec rm -r {} +
COPY setup.cfg pyproject.toml README.md celeryconfig.py ./
COPY morpheo morpheo
# Compiled here, because the root file system of a service is read-only; by contents and not by time, so that two builds
# give the same bytes.
ARG SOURCE_DATE_EPOCH=315532800
RUN chmod -R u=rwX,go=rX . && \
    /tools/bin/pip wheel -q --no-deps --no-build-isolation --no-index -w dist . && \
    /tools/bin/pip --python /opt/morpheo/bin/python install -q --no-compile --no-deps --no-index dist/*.whl && \
    /opt/morpheo/bin/python -m compileall -q --invalidation-mode unchecked-hash /opt/morpheo/lib && \
    find /opt/morpheo -exec touch -h -d "@$SOURCE_DATE_EPOCH" {} +

FROM ${BASE} AS service
# Fixed ids, so that a folder of the host can be given to them. No useradd: it writes the day into /etc/shadow.
RUN echo "morpheo:x:10001:" >>/etc/group && \
    echo "morpheo:x:10001:10001::/var/lib/morpheo:/usr/sbin/nologin" >>/etc/passwd && \
    install -d -o 10001 -g 10001 -m 0711 /var/lib/morpheo && install -d -o 10001 -g 10001 /run/build-proxy
COPY --from=build /opt/morpheo /opt/morpheo
ENV PATH=/opt/morpheo/bin:/usr/local/bin:/usr/bin:/bin \
    HOME=/var/lib/morpheo MORPHEO_DATA_DIR=/var/lib/morpheo \
    PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
USER 10001:10001
WORKDIR /var/lib/morpheo
ENTRYPOINT ["morpheo"]
STOPSIGNAL SIGTERM
ARG VERSION REVISION
LABEL org.opencontainers.image.title="Morpheo" \
      org.opencontainers.image.description="Run other people's machine-learning code on private data" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"

FROM service AS compute-api
EXPOSE 8081
HEALTHCHECK --interval=5s --timeout=10s --start-period=120s \
    CMD ["python", "-c", "from urllib.request import urlopen; urlopen('http://127.0.0.1:8081/health', timeout=8)"]
CMD ["compute-api", "--host", "0.0.0.0"]

FROM service AS storage-api
EXPOSE 8082
HEALTHCHECK --interval=5s --timeout=10s --start-period=120s \
    CMD ["python", "-c", "from urllib.request import urlopen; urlopen('http://127.0.0.1:8082/health', timeout=8)"]
CMD ["storage-api", "--host", "0.0.0.0"]

FROM service AS orchestrator-api
EXPOSE 8083
HEALTHCHECK --interval=5s --timeout=10s --start-period=120s \
    CMD ["python", "-c", "from urllib.request import urlopen; urlopen('http://127.0.0.1:8083/health', timeout=8)"]
CMD ["orchestrator-api", "--host", "0.0.0.0"]

FROM service AS compute-worker
# Each node of a worker touches a file of its own here while it speaks with its broker.
ENV MORPHEO_ALIVE_DIR=/tmp/alive
HEALTHCHECK --interval=5s --timeout=10s --start-period=120s \
    CMD ["sh", "-c", "cd /tmp/alive && test -n \"$(ls)\" && test -z \"$(find . -type f ! -newermt '30 seconds ago')\""]
CMD ["worker"]

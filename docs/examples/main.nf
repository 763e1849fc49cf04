// Features in parts, then the model:
//
//   nextflow run main.nf --slides /data/slides --job /data/job --labels /data/labels.csv --parts 4
//
// The job folder is the result: it lies outside Nextflow's work folder, and slidemil decides what in it is done.
nextflow.enable.dsl = 2

params.slides = null
params.job = null
params.labels = ''
params.parts = 4
params.more = ''

process part {
    cpus 4
    errorStrategy { task.exitStatus == 75 ? 'retry' : 'terminate' }
    maxRetries 5

    input:
    val index

    output:
    val index

    script:
    // 3: some slides failed; the last step names them
    """
    slidemil extract '${params.slides}' -o '${params.job}' --shard ${index}/${params.parts} -q ${params.more} || { s=\$?; [ \$s -eq 3 ] || exit \$s; }
    """
}

process model {
    input:
    val parts

    output:
    stdout

    script:
    def labels = params.labels ? "-l '${params.labels}'" : ''
    """
    slidemil run '${params.slides}' -o '${params.job}' -q ${labels} ${params.more} || { s=\$?; [ \$s -eq 3 ] || exit \$s; }
    """
}

workflow {
    if (!params.slides || !params.job) {
        error 'give --slides and --job'
    }
    part(Channel.of(0..<params.parts)) | collect | model | view
}
